import random
from typing import Any

import pytest

from lacache.calibration.probes import KINDS, Probe, make_probes
from lacache.errors import ConfigError, InputError
from tests.engine.tiny import tiny_tokenizer

LENGTH = 900
HAY = " ".join(
    "".join(random.Random(i).choices("abcdefgh", k=5)) + ("." if i % 9 == 0 else "")
    for i in range(3000)
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def probes(tokenizer: Any) -> list[Probe]:
    return make_probes(tokenizer, HAY, length=LENGTH, per_kind=3, seed=0)


def test_every_kind_comes_equally_often(probes: list[Probe]) -> None:
    assert [probe.kind for probe in probes] == 3 * list(KINDS)


def test_probes_nearly_reach_their_length(probes: list[Probe]) -> None:
    for probe in probes:
        assert LENGTH - 60 <= len(probe.token_ids) <= LENGTH


def test_each_answer_was_given_far_above(tokenizer: Any, probes: list[Probe]) -> None:
    for probe in probes:
        for start, stop in probe.answers:
            text = tokenizer.decode(probe.token_ids[:start])
            answer = tokenizer.decode(probe.token_ids[start:stop])
            # Runs of random bytes are no text, so they are compared by their tokens.
            tokens, wanted = probe.token_ids[:start], probe.token_ids[start:stop]
            places = [i for i in range(start) if tokens[i : i + len(wanted)] == wanted]
            assert places, (probe.kind, answer, text)
            assert start - places[-1] > 64 + 4


def test_positions_predict_the_targets(probes: list[Probe]) -> None:
    for probe in probes:
        asked = [i for start, stop in probe.answers for i in range(start, stop)]
        assert [i + 1 for i in probe.positions()] == asked
        assert probe.targets() == [probe.token_ids[i + 1] for i in probe.positions()]


def test_the_same_arguments_give_the_same_probes(tokenizer: Any, probes: list[Probe]) -> None:
    assert make_probes(tokenizer, HAY, length=LENGTH, per_kind=3, seed=0) == probes
    others = make_probes(tokenizer, HAY, length=LENGTH, per_kind=3, seed=1)
    assert all(a.token_ids != b.token_ids for a, b in zip(probes, others, strict=True))
    assert len({probe.token_ids for probe in probes}) == len(probes)


def test_too_short_a_probe_is_refused_with_a_length_that_does(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="try length=") as raised:
        make_probes(tokenizer, HAY, length=300, per_kind=1, seed=0)
    assert "length=300 leaves" in str(raised.value)
    with pytest.raises(ConfigError, match="must be at least"):
        make_probes(tokenizer, HAY, length=50, per_kind=1, seed=0)


def test_too_short_a_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="use a longer document"):
        make_probes(tokenizer, "too short", length=LENGTH, per_kind=1, seed=0)

import random
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from lacache.calibration.probes import KINDS, Probe, least_length, make_probes
from lacache.errors import ConfigError, InputError
from tests.engine.tiny import tiny_tokenizer
from tests.models.test_start_tokens import tokenizer_with

LENGTH = 900
HAY = " ".join(
    "".join(random.Random(i).choices("abcdefgh", k=5)) + ("." if i % 9 == 0 else "")
    for i in range(3000)
)
# The answers of these are put together from several places.
COMPOSED = {"chains", "counts", "several"}


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
        for start, stop in probe.answers if probe.kind not in COMPOSED else ():
            text = tokenizer.decode(probe.token_ids[:start])
            answer = tokenizer.decode(probe.token_ids[start:stop])
            # Runs of random bytes are no text, so they are compared by their tokens.
            tokens, wanted = probe.token_ids[:start], probe.token_ids[start:stop]
            places = [i for i in range(start) if tokens[i : i + len(wanted)] == wanted]
            assert places, (probe.kind, answer, text)
            assert start - places[-1] > 64 + 4


def questions_of(tokenizer: Any, probe: Probe) -> list[tuple[str, str, str]]:
    """What comes before the first question's end, the question's last line, and the answer."""
    found = []
    for start, stop in probe.answers:
        text = tokenizer.decode(probe.token_ids[:start])
        above, _, question = text.rpartition("\n")
        found.append((above, question, tokenizer.decode(probe.token_ids[start:stop])))
    return found


def of_kind(tokenizer: Any, probes: list[Probe], kind: str) -> list[tuple[str, str, str]]:
    return [found for p in probes if p.kind == kind for found in questions_of(tokenizer, p)]


def test_chains_are_passed_on_from_hand_to_hand(tokenizer: Any, probes: list[Probe]) -> None:
    for text, question, answer in of_kind(tokenizer, probes, "chains"):
        parcel, first = re.findall(r"Parcel (\d+) went through these hands: (\w+),", question)[0]
        assert f" {first} fetched parcel {parcel}." in text
        gave = dict(re.findall(r"(\w+) gave a parcel to (\w+)\.", text))
        hands = [first]
        while hands[-1] in gave:
            hands.append(gave[hands[-1]])
        assert len(hands) == 4
        assert answer == f" {', '.join(hands[1:])}."
        assert len(text) - text.rindex("gave") > 64 + 4


def test_answers_are_the_most_common_words(tokenizer: Any, probes: list[Probe]) -> None:
    for text, _question, answer in of_kind(tokenizer, probes, "counts"):
        listed = re.findall(r" ([a-z]+),", text)
        assert answer == f" {', '.join(word for word, _ in Counter(listed).most_common(3))}."
        assert len(text) - text.rindex(",") > 64 + 4


def test_several_values_of_a_key_come_in_the_order_of_the_text(
    tokenizer: Any, probes: list[Probe]
) -> None:
    for text, question, answer in of_kind(tokenizer, probes, "several"):
        (name,) = re.findall(r"Everything that (\w+) bought: the", question)
        things = re.findall(rf" {name} bought the (\w+)\.", text)
        assert len(things) == 3
        assert answer == f" {', the '.join(things)}."
        assert len(text) - text.rindex("bought the") > 64 + 4


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


@pytest.mark.parametrize("length", [1, 140, 400])
@pytest.mark.parametrize("per_kind", [1, 3])
def test_too_short_a_length_is_refused_with_one_that_works(
    tokenizer: Any, length: int, per_kind: int
) -> None:
    with pytest.raises(ConfigError, match="must be at least") as raised:
        make_probes(tokenizer, HAY, length=length, per_kind=per_kind, seed=0)
    named = int(str(raised.value).rpartition("try length=")[2])
    probes = make_probes(tokenizer, HAY, length=named, per_kind=per_kind, seed=0)
    assert len(probes) == per_kind * len(KINDS)
    with pytest.raises(ConfigError, match=f"length={named - 1} must be at least {named}"):
        make_probes(tokenizer, HAY, length=named - 1, per_kind=per_kind, seed=0)


def test_impossible_numbers_are_refused(tokenizer: Any) -> None:
    for options in ({"length": 0, "per_kind": 1}, {"length": LENGTH, "per_kind": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            make_probes(tokenizer, HAY, seed=0, **options)


@pytest.mark.parametrize("hay", ["", "too short", "  too   short \n\n"])
def test_too_short_a_text_is_refused(tokenizer: Any, hay: str) -> None:
    with pytest.raises(InputError, match="use a longer document"):
        make_probes(tokenizer, hay, length=LENGTH, per_kind=1, seed=0)


def test_white_space_in_the_text_makes_no_difference(tokenizer: Any, probes: list[Probe]) -> None:
    hay = HAY.replace(" ", "  \n")
    assert make_probes(tokenizer, hay, length=LENGTH, per_kind=3, seed=0) == probes


def test_probes_begin_as_every_text_does(tokenizer: Any, probes: list[Probe]) -> None:
    starting = tokenizer_with("<|endoftext|> <|im_start|> $A <|im_end|>")
    started = make_probes(starting, HAY, length=LENGTH + 2, per_kind=3, seed=0)
    assert [probe.token_ids for probe in started] == [(0, 1, *p.token_ids) for p in probes]
    assert [probe.targets() for probe in started] == [probe.targets() for probe in probes]
    least = least_length(tokenizer, per_kind=1, seed=0)
    assert least_length(starting, per_kind=1, seed=0) == least + 2


def test_lines_end_where_there_are_no_more_keys(tokenizer: Any) -> None:
    hay = "word " * 70_000
    (lines, *_others) = make_probes(tokenizer, hay, length=65_000, per_kind=1, seed=0)
    assert tokenizer.decode(lines.token_ids).count(": ") == 50 * 49 + 4


@pytest.mark.parametrize(("end", "where"), [("x", 0.1), (".", 0.95)])
def test_needles_are_spread_where_few_sentences_end(tokenizer: Any, end: str, where: float) -> None:
    words = ["word"] * 600
    words[int(where * len(words))] = end
    probes = make_probes(tokenizer, " ".join(words), length=LENGTH, per_kind=1, seed=0)
    (probe,) = (probe for probe in probes if probe.kind == "numbers")
    text = tokenizer.decode(probe.token_ids)
    places = [match.start() / len(text) for match in re.finditer("Remember", text)]
    assert len(places) == 4
    assert max(b - a for a, b in pairwise(places)) < 0.45
    assert places[-1] - places[0] > 0.3


def test_no_needle_is_at_the_end_of_a_haystack_without_sentences(tokenizer: Any) -> None:
    hay = "word " * 600
    probes = make_probes(tokenizer, hay, length=LENGTH, per_kind=8, seed=0)
    for probe in probes:
        if probe.kind == "numbers":
            hidden, _, _ = tokenizer.decode(probe.token_ids).partition("\nQuestion")
            assert len(hidden) - hidden.rindex("Remember") > 64 + 4

"""Snapshots in memory: another session goes on from where one stood."""

from typing import Any

import pytest

from lacache import Engine, Sampling
from lacache.engine.snapshot import Snapshot
from lacache.errors import InputError, UnsupportedOperationError
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.alone import PLAN, continued

SAMPLED = Sampling(temperature=1.0, repetition_penalty=1.3, seed=5)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def new_engine(model: Any, **options: Any) -> Engine:
    return Engine(model, *PLAN, max_sequences=2, chunk_size=5, **options)


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    tokens: list[int] = random_ids(num_tokens, seed=seed)[0].tolist()
    return tokens


def read(engine: Engine, tokens: list[int], sampling: Sampling | None = None) -> Snapshot:
    with engine.open(sampling) as session:
        list(session.generate(tokens, max_new_tokens=0))
        return session.snapshot()


@pytest.mark.parametrize("sampling", [None, SAMPLED])
def test_it_goes_on_as_the_session_does(model: Any, sampling: Sampling | None) -> None:
    engine = new_engine(model)
    with engine.open(sampling) as session:
        list(session.generate(prompt(40), max_new_tokens=6))
        snapshot = session.snapshot()
        wanted = list(session.generate(prompt(3), max_new_tokens=20))
        with new_engine(model).resume(snapshot) as other:
            assert other.num_seen == snapshot.num_seen == 45
            assert list(other.generate(prompt(3), max_new_tokens=20)) == wanted


def test_it_may_go_on_in_another_way(model: Any) -> None:
    """As if all had been read with that sampling."""
    engine = new_engine(model)
    snapshot = read(engine, prompt(40))
    with engine.resume(snapshot, SAMPLED) as session:
        found = list(session.generate([], max_new_tokens=20))
    with engine.open(SAMPLED) as session:
        assert found == list(session.generate(prompt(40), max_new_tokens=20))


def test_one_snapshot_may_be_resumed_often(model: Any) -> None:
    engine = new_engine(model)
    snapshot = read(engine, prompt(40))
    for seed in range(3):
        with engine.resume(snapshot) as session:
            found = list(session.generate(prompt(4, seed), max_new_tokens=9))
        assert found == continued(model, prompt(40) + prompt(4, seed), 9)


def test_its_bytes_are_bounded(model: Any) -> None:
    engine = new_engine(model)
    vocabulary = 64 * (8 + 4)  # the tokens that were seen, and logits
    for num_tokens in (1, 30, 300, 999):
        assert read(engine, prompt(num_tokens)).num_bytes < engine.bytes_per_sequence + vocabulary


def test_other_engines_refuse_it(model: Any) -> None:
    snapshot = read(new_engine(model), prompt(9))
    other = Engine(model, PLAN[0] + 2, PLAN[1])
    with pytest.raises(InputError, match="the snapshot was saved with policy="):
        other.resume(snapshot)
    assert other.num_free == 1
    with other.open(), pytest.raises(InputError, match="the snapshot was saved with policy="):
        other.resume(snapshot)


def test_engines_of_one_kind(model: Any) -> None:
    kind = new_engine(model).kind
    assert read(new_engine(model), prompt(9)).kind == kind
    assert Engine(model, *PLAN, max_sequences=7).kind == kind
    others = [
        Engine(model, PLAN[0] + 2, PLAN[1]),
        new_engine(model, kv_dtype="int8"),
        new_engine(tiny_model("llama", seed=1)),
    ]
    assert len({kind, *(other.kind for other in others)}) == 4


def test_no_snapshot_amid_generation(model: Any) -> None:
    with new_engine(model).open() as session:
        stream = session.generate(prompt(9))
        next(stream)
        with pytest.raises(UnsupportedOperationError, match="still generating"):
            session.snapshot()


def test_tokens_within_the_lookahead_wait_for_their_reader(model: Any) -> None:
    engine = new_engine(model)
    with engine.open() as one, engine.open() as other:
        streams = [
            session.generate(prompt(9, seed), max_new_tokens=20, lookahead=1)
            for seed, session in enumerate((one, other))
        ]
        taken: list[list[int]] = [[], []]
        while not all(stream.finish_reason for stream in streams):
            assert engine.step()
            for stream, tokens in zip(streams, taken, strict=True):
                assert stream.num_ready <= 1
                while stream.num_ready:
                    tokens.append(next(stream))
        assert taken == [continued(model, prompt(9, seed), 20) for seed in range(2)]


def test_tokens_within_the_lookahead_belong_to_the_session(model: Any) -> None:
    """Whether the model has read the one that nobody took, or not."""
    for num_steps in (2, 3, 5):
        engine = new_engine(model)
        with engine.open() as session:
            stream = session.generate(prompt(4), lookahead=1)
            for _ in range(num_steps):
                engine.step()
            assert stream.num_ready == 1
            stream.close()
            text = prompt(4) + continued(model, prompt(4), 1)
            assert list(session.generate(prompt(3), max_new_tokens=5)) == continued(
                model, text + prompt(3), 5
            )


def test_a_token_taken_out_is_not_penalised(model: Any) -> None:
    sampling = Sampling(repetition_penalty=5.0)
    engine = new_engine(model)
    with engine.open(sampling) as session:
        (token,) = session.generate(prompt(9), max_new_tokens=1)
        assert token not in prompt(9)
        session.drop_last()
        assert token not in session.snapshot().sampler.seen
        found = list(session.generate(prompt(3), max_new_tokens=9))
    with engine.open(sampling) as session:
        assert found == list(session.generate(prompt(9) + prompt(3), max_new_tokens=9))

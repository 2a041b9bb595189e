"""One text of many turns in a row of an engine, against the same text alone."""

import gc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lacache import Engine, LaCache, Sampling
from lacache.errors import InputError, UnsupportedOperationError
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.alone import PLAN, continued

SAMPLED = Sampling(temperature=1.0, repetition_penalty=1.3, seed=5)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture
def engine(model: Any) -> Engine:
    return Engine(model, *PLAN, max_sequences=2, chunk_size=5)


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    tokens: list[int] = random_ids(num_tokens, seed=seed)[0].tolist()
    return tokens


def test_messages_are_one_sequence(model: Any, engine: Engine) -> None:
    text: list[int] = []
    with engine.open() as session:
        for turn, num_new in enumerate([5, 1, 20, 7]):
            text += prompt(11, seed=turn)
            written = list(session.generate(prompt(11, seed=turn), max_new_tokens=num_new))
            assert written == continued(model, text, num_new)
            text += written
            assert session.num_seen == len(text) - 1


def test_a_stream_closed_early_has_written_what_it_yielded(model: Any, engine: Engine) -> None:
    session = engine.open()
    stream = session.generate(prompt(9))
    taken = list(islice(stream, 4))
    stream.close()
    assert (stream.finish_reason, list(stream)) == ("closed", [])
    text = prompt(9) + taken + prompt(3)
    assert list(session.generate(prompt(3), max_new_tokens=5)) == continued(model, text, 5)


def test_a_progress_callback_may_change_another_session(model: Any, engine: Engine) -> None:
    session = engine.open()
    stream = session.generate(prompt(9), lookahead=1)
    taken = list(islice(stream, 3))

    def change(num_tokens: int) -> None:
        stream.close()
        session.drop_last()

    other = engine.submit(prompt(4), max_new_tokens=6, on_progress=change)
    assert list(other) == continued(model, prompt(4), 6)
    assert stream.finish_reason == "closed"
    # The last token that was taken is the one that was dropped.
    assert session.num_seen == 9 + len(taken) - 1


def test_a_stream_that_nobody_holds_is_closed(model: Any, engine: Engine) -> None:
    session = engine.open()
    taken = []
    for token in session.generate(prompt(9)):
        taken.append(token)
        if len(taken) == 3:
            break
    gc.collect()
    rest = session.generate([], max_new_tokens=5)
    assert taken + list(rest) == continued(model, prompt(9), 8)


@pytest.mark.parametrize("num_steps", [0, 1, 5])
@pytest.mark.parametrize("sampling", [None, SAMPLED])
def test_others_do_not_change_where_it_stands(
    model: Any, engine: Engine, num_steps: int, sampling: Sampling | None
) -> None:
    """The model may have read the newest token or not; nothing beyond it was chosen."""

    def written(num_steps: int) -> list[int]:
        session = engine.open(sampling)
        stream = session.generate(prompt(9))
        taken = list(islice(stream, 3))
        for _ in range(num_steps):
            engine.step()
        assert stream.num_ready == 0
        stream.close()
        turns = [prompt(4), [], prompt(2)]
        for turn in turns:
            taken += session.generate(turn, max_new_tokens=3)
        session.close()
        return taken

    alone = written(0)
    with engine.submit(prompt(50), sampling=Sampling(temperature=1.0)):
        assert written(num_steps) == alone


def test_going_on_without_new_tokens(model: Any, engine: Engine) -> None:
    session = engine.open()
    assert list(session.generate(prompt(9), max_new_tokens=0)) == []
    assert session.num_seen == 9
    assert list(session.generate([], max_new_tokens=0)) == []
    fork = session.fork()
    assert list(fork.generate([], max_new_tokens=3)) == continued(model, prompt(9), 3)
    fork.close()
    taken = list(session.generate([], max_new_tokens=4))
    stream = session.generate([], max_new_tokens=4)
    taken += stream
    assert stream.finish_reason == "length"
    fork = session.fork()
    taken += fork.generate([], max_new_tokens=4)
    assert taken == continued(model, prompt(9), 12)


def test_a_prompt_closed_midway_is_read_so_far(model: Any, engine: Engine) -> None:
    session = engine.open()
    text = prompt(9) + list(session.generate(prompt(9), max_new_tokens=3))
    stream = session.generate(prompt(40))
    engine.step()
    engine.step()
    stream.close()
    # The newest token, and nine of the prompt.
    assert session.num_seen == len(text) + 9
    text += prompt(40)[:9]
    assert list(session.generate([], max_new_tokens=2)) == continued(model, text, 2)


def test_a_stream_closed_at_once_leaves_the_text(model: Any, engine: Engine) -> None:
    session = engine.open()
    text = prompt(9) + list(session.generate(prompt(9), max_new_tokens=3))
    session.generate(prompt(40)).close()
    assert list(session.generate(prompt(2), max_new_tokens=5)) == continued(
        model, text + prompt(2), 5
    )


def test_the_end_token_may_be_dropped(model: Any, engine: Engine) -> None:
    whole = continued(model, prompt(9), 5)
    end = whole[4]
    session = engine.open()
    written = list(session.generate(prompt(9), eos_token_ids=[end]))
    assert written[-1] == end
    session.drop_last()
    session.drop_last()
    with pytest.raises(InputError, match=r"no token to go on from; give at least 1 token"):
        session.generate([])
    text = prompt(9) + written[:-1] + prompt(2)
    assert list(session.generate(prompt(2), max_new_tokens=5)) == continued(model, text, 5)


def test_what_was_expected_goes_with_a_dropped_token(engine: Engine) -> None:
    session = engine.open()
    list(session.generate(prompt(9), max_new_tokens=3))
    session.drop_last()
    with pytest.raises(UnsupportedOperationError, match=r"drop_last\(\) removed.*score the others"):
        session.score(prompt(4))
    list(session.generate(prompt(4)[:1], max_new_tokens=0))
    assert len(session.score(prompt(4)[1:])) == 3


@pytest.mark.parametrize("sampling", [None, SAMPLED])
def test_forks_are_independent(model: Any, engine: Engine, sampling: Sampling | None) -> None:
    session = engine.open(sampling)
    text = prompt(30) + list(session.generate(prompt(30), max_new_tokens=5))
    fork = session.fork()
    streams = [session.generate(prompt(3, seed=1)), fork.generate(prompt(4, seed=2))]
    pairs = list(islice(zip(*streams, strict=True), 20))
    for stream in streams:
        stream.close()
    mine, others = (list(tokens) for tokens in zip(*pairs, strict=True))
    if sampling is None:
        assert mine == continued(model, text + prompt(3, seed=1), 20)
        assert others == continued(model, text + prompt(4, seed=2), 20)
    session.close()
    # TokenStream on alike, another fork says the same.
    again = fork.fork()
    assert list(again.generate([], max_new_tokens=9)) == list(fork.generate([], max_new_tokens=9))
    assert mine != others


def test_the_report_is_that_of_a_cache(model: Any, engine: Engine) -> None:
    session = engine.open()
    for length in (9, 20, 40):
        cache = LaCache(model, *PLAN)
        list(session.generate(prompt(length)[session.num_seen :], max_new_tokens=0))
        cache.prefill(model, torch.tensor([prompt(length)]))
        mine, its = session.report(), cache.report()
        assert mine.bytes == engine.bytes_per_sequence
        # The engine has the keys of two sinks twice.
        assert its.held_bytes == its.bytes
        sinks_again = min(2, mine.num_cached) * its.bytes // max(its.num_cached, 1) // 2
        assert mine.held_bytes == its.bytes + sinks_again <= mine.bytes
        assert {**vars(mine), "bytes": 0, "held_bytes": 0} == {
            **vars(its),
            "bytes": 0,
            "held_bytes": 0,
        }
        assert session.num_seen == length


def test_a_second_stream_is_refused(model: Any, engine: Engine) -> None:
    session = engine.open()
    stream = session.generate(prompt(9))
    taken = list(islice(stream, 3))
    calls: list[Callable[[], Any]] = [
        lambda: session.generate(prompt(3)),
        session.fork,
        session.drop_last,
    ]
    for call in calls:
        with pytest.raises(
            UnsupportedOperationError,
            match=r"still generating; take its stream to the end, or close the stream",
        ):
            call()
    assert taken + list(islice(stream, 3)) == continued(model, prompt(9), 6)


def test_a_closed_session_is_refused(engine: Engine) -> None:
    with engine.open() as session:
        stream = session.generate(prompt(9))
        next(stream)
    session.close()
    assert (stream.finish_reason, list(stream)) == ("closed", [])
    other = engine.open()
    list(other.generate(prompt(5), max_new_tokens=0))
    session.close()
    calls: list[Callable[[], Any]] = [
        lambda: session.generate(prompt(3)),
        session.fork,
        session.drop_last,
        session.report,
        lambda: session.num_seen,
    ]
    for call in calls:
        with pytest.raises(
            UnsupportedOperationError, match=r"the session is closed.*open a new one"
        ):
            call()
    assert (other.num_seen, engine.num_free) == (5, 1)


def test_more_sessions_than_batch_slots_are_refused(engine: Engine) -> None:
    first, _ = engine.open(), engine.open()
    for ask in (engine.open, first.fork):
        with pytest.raises(
            UnsupportedOperationError,
            match=r"all 2 batch slots are in use; close a session, use submit, which waits, or",
        ):
            ask()


@pytest.mark.parametrize("tokens", [[], torch.zeros(0, dtype=torch.long)])
def test_nothing_to_go_on_from_is_refused(engine: Engine, tokens: Any) -> None:
    with engine.open() as session, pytest.raises(InputError, match="no token to go on from"):
        session.generate(tokens)


def test_a_text_that_was_only_read_may_be_saved(model: Any, engine: Engine, tmp_path: Path) -> None:
    session = engine.open()
    list(session.generate(prompt(30), max_new_tokens=0))
    session.save(tmp_path / "text")
    loaded = engine.load(tmp_path / "text")
    assert list(loaded.generate([], max_new_tokens=5)) == continued(model, prompt(30), 5)


def test_an_interrupted_score_leaves_the_text_that_was_read(model: Any, engine: Engine) -> None:
    session = engine.open()
    list(session.generate(prompt(9), max_new_tokens=0))

    def interrupt(num_read: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.score(prompt(8), chunk_size=3, on_progress=interrupt)
    text = prompt(9) + prompt(8)[:3]
    assert session.num_seen == len(text)
    assert list(session.generate([], max_new_tokens=5)) == continued(model, text, 5)


def test_a_score_that_does_not_fit_leaves_the_text_that_was_read(
    model: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.open()
    list(session.generate(prompt(9), max_new_tokens=0))

    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("lacache.engine.session.cross_entropy", refuse)
        with pytest.raises(MemoryError):
            session.score(prompt(8), chunk_size=3)
    text = prompt(9) + prompt(8)[:3]
    assert session.num_seen == len(text)
    assert list(session.generate([], max_new_tokens=5)) == continued(model, text, 5)


def test_an_interrupted_prompt_may_be_read_on(model: Any, engine: Engine) -> None:
    """As Ctrl-C does in a progress bar."""
    session = engine.open()
    pieces: list[int] = []

    def interrupt(num_read: int) -> None:
        pieces.append(num_read)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    stream = session.generate(prompt(33), max_new_tokens=4, on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert session.num_seen == sum(pieces) == 15
    assert list(stream) == continued(model, prompt(33), 4)
    assert sum(pieces) == 33


def test_an_interrupted_prompt_may_be_left(model: Any, engine: Engine) -> None:
    session = engine.open()
    text = prompt(9) + list(session.generate(prompt(9), max_new_tokens=3))

    def interrupt(num_read: int) -> None:
        raise KeyboardInterrupt

    stream = session.generate(prompt(33), on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt), stream:
        next(stream)
    text += [*prompt(33)[:4], *prompt(2)]
    assert list(session.generate(prompt(2), max_new_tokens=4)) == continued(model, text, 4)

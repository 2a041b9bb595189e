"""Any calls in any order, against a list of tokens for each text and a replay of it alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache as memoize
from itertools import islice
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lacache import Engine, Sampling, Session
from lacache.engine.sequence_stream import SequenceStream
from lacache.errors import InputError, UnsupportedOperationError
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.alone import PLAN, continued

MAX_SEQUENCES, CHUNK_SIZE, LOOKAHEAD = 3, 5, 3


@memoize
def model(family: str) -> Any:
    return tiny_model(family)


def new_engine(family: str) -> Engine:
    return Engine(model(family), *PLAN, max_sequences=MAX_SEQUENCES, chunk_size=CHUNK_SIZE)


@dataclass
class Turn:
    """One call of write or submit; what it gave and what its stream yielded."""

    given: list[int]
    limit: int | None
    ends: frozenset[int]
    yielded: list[int] = field(default_factory=list)
    drops_last: bool = False


@dataclass
class Text:
    """The slow twin of a sequence: its turns, the last of which may be going on."""

    sampling: Sampling | None
    turns: list[Turn] = field(default_factory=list)
    session: Session | None = None
    stream: SequenceStream | None = None

    def tokens(self) -> list[int]:
        tokens: list[int] = []
        for turn in self.turns:
            tokens += turn.given + turn.yielded
            if turn.drops_last:
                tokens.pop()
        return tokens

    def copy(self, session: Session) -> "Text":
        return Text(self.sampling, list(self.turns), session)


def replay(family: str, text: Text) -> list[int]:
    """What the last turn yields, from scratch."""
    count = len(text.turns[-1].yielded)
    if text.sampling is None:
        before = text.tokens()
        return continued(model(family), before[: len(before) - count], count)
    # Random numbers go on from turn to turn.
    session = new_engine(family).open(text.sampling)
    found: list[int] = []
    for turn in text.turns:
        count = len(turn.yielded)
        limit = 0 if count == 0 else None
        if turn.given or count:
            stream = session.generate(turn.given, max_new_tokens=limit)
            found = list(islice(stream, count)) if count else list(stream)
            stream.close()
        if turn.drops_last:
            session.drop_last()
    return found


class Calls(RuleBasedStateMachine):
    family = "llama"

    @initialize()
    def start(self) -> None:
        self.engine = new_engine(self.family)
        self.num_bytes = self.engine.num_bytes
        self.submitted: list[Text] = []
        self.sessions: list[Text] = []

    @precondition(lambda self: len(self.submitted) < 5)
    @rule(
        length=st.integers(1, 60),
        limit=st.one_of(st.none(), st.integers(0, 12)),
        ends=st.frozensets(st.integers(2, 63), max_size=4),
        seed=st.one_of(st.none(), st.integers(0, 9)),
    )
    def submit(
        self, length: int, limit: int | None, ends: frozenset[int], seed: int | None
    ) -> None:
        text = Text(
            sampling(seed), [Turn(random_ids(length, seed=length)[0].tolist(), limit, ends)]
        )
        text.stream = self.engine.submit(
            text.turns[0].given, max_new_tokens=limit, eos_token_ids=ends, sampling=text.sampling
        )
        self.submitted.append(text)

    @rule(seed=st.one_of(st.none(), st.integers(0, 9)))
    def open(self, seed: int | None) -> None:
        if self.engine.num_free:
            self.sessions.append(Text(sampling(seed), session=self.engine.open(sampling(seed))))
        else:
            with pytest.raises(UnsupportedOperationError, match="all 3 batch slots are in use"):
                self.engine.open()

    @precondition(lambda self: self.sessions)
    @rule(
        pick=st.integers(0, 9),
        length=st.integers(0, 30),
        limit=st.one_of(st.none(), st.integers(0, 8)),
        ends=st.frozensets(st.integers(2, 63), max_size=4),
    )
    def write(self, pick: int, length: int, limit: int | None, ends: frozenset[int]) -> None:
        text = self._session(pick)
        assert text.session is not None
        turn = Turn(random_ids(length, seed=length)[0].tolist(), limit, ends)

        def write() -> SequenceStream:
            assert text.session is not None
            return text.session.generate(turn.given, max_new_tokens=limit, eos_token_ids=ends)

        if text.stream is not None:
            with pytest.raises(UnsupportedOperationError, match="still generating"):
                write()
        elif length == 0 and (not text.turns or text.turns[-1].drops_last):
            with pytest.raises(InputError, match="no token to go on from"):
                write()
        else:
            text.stream = write()
            text.turns.append(turn)

    @rule(pick=st.integers(0, 9), count=st.integers(1, 9))
    def take(self, pick: int, count: int) -> None:
        text = self._decoding(pick)
        if text is not None:
            self._take(text, count)

    @rule(count=st.integers(1, 7))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    @rule(pick=st.integers(0, 9))
    def close_stream(self, pick: int) -> None:
        text = self._decoding(pick)
        if text is not None:
            assert text.stream is not None
            text.stream.close()
            assert text.stream.finish_reason == "closed"
            assert list(text.stream) == []
            self._check(text)

    @rule(pick=st.integers(0, 9))
    def forget_stream(self, pick: int) -> None:
        """The same, by whoever collects what nobody holds."""
        text = self._decoding(pick)
        if text is not None:
            text.stream = None
            self._check(text)

    @precondition(lambda self: self.sessions)
    @rule(pick=st.integers(0, 9))
    def fork(self, pick: int) -> None:
        text = self._session(pick)
        assert text.session is not None
        if text.stream is not None:
            with pytest.raises(UnsupportedOperationError, match="still generating"):
                text.session.fork()
        elif self.engine.num_free == 0:
            with pytest.raises(UnsupportedOperationError, match="all 3 batch slots are in use"):
                text.session.fork()
        else:
            self.sessions.append(text.copy(text.session.fork()))

    @precondition(lambda self: self.sessions)
    @rule(pick=st.integers(0, 9))
    def drop_last(self, pick: int) -> None:
        text = self._session(pick)
        if text.stream is None and text.turns:
            assert text.session is not None
            if text.session.num_seen < len(text.tokens()):
                text.turns[-1] = Turn(**{**vars(text.turns[-1]), "drops_last": True})
            text.session.drop_last()

    @precondition(lambda self: self.sessions)
    @rule(pick=st.integers(0, 9))
    def close_session(self, pick: int) -> None:
        text = self._session(pick)
        assert text.session is not None
        text.session.close()
        text.session.close()
        if text.stream is not None:
            assert text.stream.finish_reason == "closed"
            assert list(text.stream) == []
            text.session = None
            self._check(text)
        else:
            self.sessions.remove(text)

    @invariant()
    def sequences_end_where_they_should(self) -> None:
        for text in (*self.submitted, *self.sessions):
            if text.stream is not None and text.stream.finish_reason is not None:
                turn = text.turns[-1]
                ended = turn.yielded and turn.yielded[-1] in turn.ends
                assert ended or len(turn.yielded) == turn.limit
                assert text.stream.finish_reason == ("eos" if ended else "length")
                assert list(text.stream) == []
                self._check(text)

    @invariant()
    def batch_slots_add_up(self) -> None:
        held = sum(text.session is not None for text in self.sessions)
        assert held <= MAX_SEQUENCES - self.engine.num_free <= held + len(self.submitted)
        assert (
            self.engine.num_bytes
            == self.num_bytes
            == MAX_SEQUENCES * self.engine.bytes_per_sequence
        )

    @invariant()
    def no_sequence_runs_beyond_its_lookahead(self) -> None:
        for text in self.submitted:
            assert text.stream is not None
            assert text.stream.num_ready <= LOOKAHEAD
        for text in self.sessions:
            assert text.stream is None or text.stream.num_ready == 0

    @invariant()
    def all_but_the_newest_token_is_read(self) -> None:
        for text in self.sessions:
            if text.stream is None and text.session is not None:
                assert text.session.num_seen in (len(text.tokens()), len(text.tokens()) - 1)

    def teardown(self) -> None:
        while self.sessions:
            self.close_session(0)
        while self.submitted:
            for text in [*self.submitted]:
                self._take(text, 4)
                if text.turns[0].limit is None:
                    assert text.stream is not None
                    text.stream.close()
                    self._check(text)
            self.sequences_end_where_they_should()
        assert self.engine.num_free == MAX_SEQUENCES
        assert not self.engine.step()

    def _session(self, pick: int) -> Text:
        return self.sessions[pick % len(self.sessions)]

    def _decoding(self, pick: int) -> Text | None:
        texts = [text for text in (*self.submitted, *self.sessions) if text.stream is not None]
        return texts[pick % len(texts)] if texts else None

    def _take(self, text: Text, count: int) -> None:
        turn = text.turns[-1]
        assert text.stream is not None
        for _ in range(count):
            try:
                token = next(text.stream)
            except StopIteration:
                return
            except UnsupportedOperationError:
                # Of those in its way, none goes on without its reader.
                assert text.session is None
                assert not turn.yielded
                assert self.engine.num_free == 0
                assert not self.engine.step()
                return
            assert not set(turn.yielded) & turn.ends
            assert turn.limit is None or len(turn.yielded) < turn.limit
            turn.yielded.append(token)

    def _check(self, text: Text) -> None:
        """Once a turn is over: all that it yielded."""
        turn = text.turns[-1]
        text.stream = None
        if text.session is not None and not turn.yielded:
            # What was not read of a prompt is not part of the text.
            unread = len(text.tokens()) - max(
                text.session.num_seen, len(text.tokens()) - len(turn.given)
            )
            turn.given = turn.given[: len(turn.given) - unread]
        if turn.yielded:
            assert turn.yielded == replay(self.family, text)
        elif not turn.given:
            text.turns.pop()
        if text in self.submitted:
            self.submitted.remove(text)
        elif text.session is None:
            self.sessions.remove(text)


class HybridCalls(Calls):
    family = "gemma3"


def sampling(seed: int | None) -> Sampling | None:
    return None if seed is None else Sampling(temperature=1.0, repetition_penalty=1.2, seed=seed)


@pytest.fixture(autouse=True)
def _within_lookahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("lacache.engine.engine._LOOKAHEAD", LOOKAHEAD)
    return


def examples(number: int) -> settings:
    return settings(max_examples=number, stateful_step_count=40, report_multiple_bugs=False)


class TestCalls(Calls.TestCase):  # type: ignore[misc,name-defined]
    settings = examples(8)


class TestHybridCalls(HybridCalls.TestCase):  # type: ignore[misc,name-defined]
    settings = examples(3)

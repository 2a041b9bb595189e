"""Where a text begins, and where its state goes: an empty row, a known beginning, a session."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from lacache.engine.engine import Engine
from lacache.engine.sampling import Sampling
from lacache.engine.session import Session
from lacache.server.state.prefixes import Prefixes
from lacache.server.state.sessions import Lease


@final
@dataclass(frozen=True)
class Opened:
    """A text that has a row.

    Args:
        session: in the engine.
        unread: tokens of the prompt that are still to be read.
        num_reused: tokens of the prompt that are not.
    """

    session: Session
    unread: list[int]
    num_reused: int


class Origin(ABC):
    """Called in the engine's thread alone, in the order of the methods below."""

    @abstractmethod
    def open(self, engine: Engine) -> Opened:
        """Take a row, which is free.

        Raises:
            LaCacheError: the text cannot be begun.
        """

    @abstractmethod
    def when_read(self, session: Session) -> None:
        """The prompt is read."""

    @abstractmethod
    def when_written(self, session: Session, new: list[int]) -> Callable[[], None] | None:
        """No more is written; what takes long and is to be done before that is told, if anything.

        It is called in another thread.
        """

    @abstractmethod
    def close(self) -> None:
        """The end, whatever came of it; from any thread."""


@final
class PromptOrigin(Origin):
    """A prompt, whose beginning may be known; where it and the answer stand is kept in turn.

    Args:
        tokens: of the prompt.
        sampling: how tokens are chosen.
        prefixes: what is known.
    """

    def __init__(self, tokens: list[int], sampling: Sampling, prefixes: Prefixes) -> None:
        self._tokens = tokens
        self._sampling = sampling
        self._prefixes = prefixes

    def open(self, engine: Engine) -> Opened:
        """Go on from the longest beginning that is known."""
        known = self._prefixes.longest(self._tokens)
        if known is None:
            return Opened(engine.open(self._sampling), self._tokens, 0)
        unread = self._tokens[known.num_seen :]
        return Opened(engine.resume(known, self._sampling), unread, known.num_seen)

    def when_read(self, session: Session) -> None:
        """Keep where the prompt ended: the same may come again, or go on after another answer."""
        if self._prefixes.is_on:
            self._prefixes.put(self._tokens, session.snapshot())

    def when_written(self, session: Session, new: list[int]) -> None:
        """Keep where the answer ended: most often the next prompt goes on from there."""
        if self._prefixes.is_on:
            # A token that the model has not read is no part of what it knows.
            session.drop_last()
            self._prefixes.put((self._tokens + new)[: session.num_seen], session.snapshot())

    def close(self) -> None:
        """Nothing is held."""


@final
class SessionOrigin(Origin):
    """A session that has a name.

    Args:
        tokens: what is new.
        sampling: how tokens are chosen.
        lease: of the session.
        eos_token_ids: tokens that end a text and are no part of it.
    """

    def __init__(
        self, tokens: list[int], sampling: Sampling, lease: Lease, eos_token_ids: frozenset[int]
    ) -> None:
        self._tokens = tokens
        self._sampling = sampling
        self._lease = lease
        self._ends = eos_token_ids

    def open(self, engine: Engine) -> Opened:
        """Go on from where it stands on disk."""
        known = self._lease.load()
        return Opened(engine.resume(known, self._sampling), self._tokens, 0)

    def when_read(self, session: Session) -> None:
        """Nothing to do: a turn that is not answered did not happen."""

    def when_written(self, session: Session, new: list[int]) -> Callable[[], None]:
        """Save it before its end is told, and without holding up the other texts."""
        if new and new[-1] in self._ends:
            session.drop_last()
        snapshot = session.snapshot()
        return lambda: self._lease.save(snapshot)

    def close(self) -> None:
        """Others may go on with it."""
        self._lease.close()

"""One text that a server is asked for, and what becomes of it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, final

from lacache.engine.sampler import TokenLogprobs
from lacache.engine.stop import StopStrings
from lacache.server.origin import Origin

FinishReason = Literal["stop", "length"]


@final
@dataclass(frozen=True)
class Began:
    """A row was free.

    Args:
        num_seen: tokens of the text that were read before, of a session or of the prompt.
        num_reused: those of them that are tokens of the prompt.
    """

    num_seen: int
    num_reused: int


@final
@dataclass(frozen=True)
class HasRead:
    """Some tokens of the prompt were read."""

    num_tokens: int


@final
@dataclass(frozen=True)
class Token:
    """A token that was written.

    Args:
        id: of it.
        offset: characters of the text before its own.
        text: that it completes; the first tokens of a character have none.
        logprobs: where they were asked for.
    """

    id: int
    offset: int
    text: str
    logprobs: TokenLogprobs | None


@final
@dataclass(frozen=True)
class Piece:
    """Text that is certain, never empty, and the tokens since the last one."""

    text: str
    tokens: tuple[Token, ...]


@final
@dataclass(frozen=True)
class Finished:
    """The end of a text.

    Args:
        reason: "stop" at an end token or a stop string, else "length".
        num_new: tokens that were written, the one that ended the text included.
        tokens: those that gave no text of their own, since the last piece.
    """

    reason: FinishReason
    num_new: int
    tokens: tuple[Token, ...]


@final
@dataclass(frozen=True)
class Failed:
    """No more comes.

    Args:
        error: why.
        num_new: tokens that were written.
    """

    error: Exception
    num_new: int = 0


Event = Began | HasRead | Piece | Finished | Failed


@final
@dataclass(eq=False)
class Job:
    """What is wanted, and who hears of it.

    Args:
        origin: where the text begins.
        max_new_tokens: at least one.
        eos_token_ids: tokens that end the text.
        stops: strings that end it; nobody else's.
        tell: called in another thread with every event, the last of which is Finished or Failed;
            must return at once.
        seconds: how long it may take from now on.
        top_logprobs: likeliest tokens to tell with each; None tells no log probabilities.
    """

    origin: Origin
    max_new_tokens: int
    eos_token_ids: frozenset[int]
    stops: StopStrings
    tell: Callable[[Event], None]
    seconds: float
    top_logprobs: int | None = None
    began: float = field(default_factory=time.monotonic)
    _given_up: threading.Event = field(default_factory=threading.Event)

    def give_up(self) -> None:
        """Nobody wants it any more. From any thread."""
        self._given_up.set()

    @property
    def is_given_up(self) -> bool:
        """Whether its row can be given to another text."""
        return self._given_up.is_set()

    @property
    def is_late(self) -> bool:
        """Whether it took too long."""
        return time.monotonic() - self.began > self.seconds

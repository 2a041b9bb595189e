"""One text that a server is asked for, and what becomes of it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, final

from lacache.engine.sampling import Sampling
from lacache.engine.stop import StopStrings

FinishReason = Literal["stop", "length"]


@final
@dataclass(frozen=True)
class Piece:
    """Text that is certain, never empty."""

    text: str


@final
@dataclass(frozen=True)
class Finished:
    """The end of a text.

    Args:
        reason: "stop" at an end token or a stop string, else "length".
        num_new: tokens that were written, the one that ended the text included.
    """

    reason: FinishReason
    num_new: int


@final
@dataclass(frozen=True)
class Failed:
    """No more comes, and why."""

    error: Exception


Event = Piece | Finished | Failed


@final
@dataclass(eq=False)
class Job:
    """What is wanted, and who hears of it.

    Args:
        tokens: of the prompt, at least one.
        max_new_tokens: at least one.
        sampling: how tokens are chosen.
        eos_token_ids: tokens that end the text.
        stops: strings that end it; nobody else's.
        tell: called in the engine's thread with every event; must return at once.
        seconds: how long it may take from now on.
    """

    tokens: list[int]
    max_new_tokens: int
    sampling: Sampling
    eos_token_ids: frozenset[int]
    stops: StopStrings
    tell: Callable[[Event], None]
    seconds: float
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

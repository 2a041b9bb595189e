"""One text that is asked for, and how far it has come."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from lacache.engine.logprobs import TokenLogprobs
from lacache.errors import ModelError


@final
@dataclass(eq=False)
class Request:
    """What one sequence is to read and write now."""

    unread: Tensor
    """Tokens [Q] of the prompt that the model has not read."""
    max_new_tokens: int | None
    eos_token_ids: frozenset[int]
    ahead: int
    """How many tokens may be chosen before their reader asks; then the sequence pauses."""
    gives_row_back: bool
    """Whether the sequence ends with this request."""
    on_progress: Callable[[int], None] | None = None
    top_logprobs: int | None = None
    """How many likeliest tokens are told with each; None tells nothing of how likely any was."""
    num_written: int = 0
    ready: deque[tuple[int, TokenLogprobs | None]] = field(default_factory=deque)
    """Tokens that wait for their reader."""
    error: ModelError | None = None
    """Why the next token cannot be chosen, where that was tried before its reader asked."""
    stopped_by: str | None = None
    """Why it ended: "eos", "length" or "closed"; None while it goes on."""

    @property
    def is_reading(self) -> bool:
        """Whether the prompt is to be read on."""
        return len(self.unread) > 0 and self.stopped_by is None

    @property
    def is_done(self) -> bool:
        """Whether it has ended and every token was taken."""
        return self.stopped_by is not None and not self.ready

    @property
    def is_writing(self) -> bool:
        """Whether tokens are wanted, now or later."""
        return len(self.unread) == 0 and self.stopped_by is None

    @property
    def wants_choice(self) -> bool:
        """Whether the next token may be chosen before its reader asks."""
        return self.is_writing and len(self.ready) < self.ahead

    @property
    def wants_logits(self) -> bool:
        """Whether the model may read the newest token, so that the next can be chosen."""
        return self.is_writing and len(self.ready) <= self.ahead

    def add(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take a new token, and end if it is the last."""
        self.ready.append((token, logprobs))
        self.num_written += 1
        if token in self.eos_token_ids:
            self.stopped_by = "eos"
        else:
            self.end_if_long_enough()

    def cancel(self) -> None:
        """End now, and drop what its reader has not taken."""
        if not self.is_done:
            self.stopped_by = "closed"
        self.ready.clear()

    def end_if_long_enough(self) -> None:
        """End where no more tokens are wanted."""
        if self.num_written == self.max_new_tokens:
            self.stopped_by = "length"

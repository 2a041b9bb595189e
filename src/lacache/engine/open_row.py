"""A row that a text has, and how far the text has come."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lacache.engine.request import Request
from lacache.engine.sampler import Sampler


@final
@dataclass(eq=False)
class OpenRow:
    """One sequence; the store holds what the model keeps of it."""

    index: int
    """Of the row."""
    sampler: Sampler
    last: int | None = None
    """The newest token of the text, where the model has not read it yet."""
    logits: Tensor | None = None
    """The model's logits [V] for the next token, where it has read the newest one."""
    request: Request | None = None
    """What was asked for last."""

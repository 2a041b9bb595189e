"""A text, and where it is from."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Text:
    """A text to read.

    Attributes:
        name: What it was asked for by.
        source: The package or file that it is from.
        licence: Under which terms; "unknown" for a file.
        content: The text itself, never empty.
    """

    name: str
    source: str
    licence: str
    content: str

"""What reads and writes one text in turns, over whichever cache."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Self, final

from torch import Tensor

from lacache.cache.report import CacheReport


class Written(Iterator[int], ABC):
    """New tokens of a text, as they come."""

    @property
    @abstractmethod
    def stopped_by(self) -> str | None:
        """Why no more tokens come: "eos", "length" or "closed"; None while some may."""

    @abstractmethod
    def close(self) -> None:
        """End here; again and again does no harm."""


class Writer(ABC):
    """One text: what was given to `write`, and what its iterators yielded."""

    @abstractmethod
    def write(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> Written:
        """Add tokens to the text, and write on.

        Args:
            tokens: new tokens [Q]; may be empty where there is a text to go on from.
            max_new_tokens: how many tokens to yield at most; None is without end, 0 only reads.
            eos_token_ids: tokens that end the writing; the one that did is yielded too.
            on_progress: called with the number of tokens after each piece that was read.

        Raises:
            InputError: nothing to read, or no tokens of this model.
            ConfigError: a negative number of tokens.
        """

    @abstractmethod
    def drop_last(self) -> None:
        """Take the newest token out of the text, where the model has not read it yet.

        The token that ended a reply is such a one, and a chat template brings its own.
        """

    @abstractmethod
    def report(self) -> CacheReport:
        """What the cache holds, and how much it has seen."""

    def num_bytes(self) -> int:
        """Bytes of keys and values that the text takes now."""
        return self.report().bytes

    @abstractmethod
    def close(self) -> None:
        """Give back what the text holds; again and again does no harm."""

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(self, *args: object) -> None:
        self.close()

"""The interface of a text generator, over an engine or over a cache of transformers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Self, final

from torch import Tensor

from lacache.cache.report import CacheReport


class TokenStream(Iterator[int], ABC):
    """New tokens of one `generate` call, as they come; leaving a `with` block closes it."""

    @property
    @abstractmethod
    def finish_reason(self) -> str | None:
        """Why no more tokens come: "eos", "length" or "closed"; None while some may."""

    @abstractmethod
    def close(self) -> None:
        """Stop generating; idempotent."""

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(self, *args: object) -> None:
        self.close()


class TextGenerator(ABC):
    """One sequence: the tokens that `generate` was given, and those that its streams yielded."""

    @abstractmethod
    def generate(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> TokenStream:
        """Append tokens to the sequence, and generate what follows.

        Args:
            tokens: new tokens [Q]; may be empty where the sequence has tokens already.
            max_new_tokens: most tokens to yield; None is without end, 0 only prefills.
            eos_token_ids: tokens that end the stream; the one that did is yielded too.
            on_progress: called after each chunk of the prompt with its number of tokens.

        Raises:
            InputError: nothing to prefill, or tokens that the model does not have.
            ConfigError: a negative number of tokens.
        """

    @abstractmethod
    def drop_last(self) -> None:
        """Remove the newest token from the sequence, if the model has not processed it yet.

        The token that ended a reply is such a token, and a chat template adds its own.
        """

    @abstractmethod
    def report(self) -> CacheReport:
        """Return what the cache holds, and how much it has seen."""

    def num_bytes(self) -> int:
        """Return the bytes of keys and values that the sequence takes now."""
        return self.report().bytes

    @abstractmethod
    def close(self) -> None:
        """Free what the sequence holds; idempotent."""

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(self, *args: object) -> None:
        self.close()

"""What layers of bounded length have in common, and those that a plan rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn

from transformers.cache_utils import CacheLayerMixin

from lacache.errors import UnsupportedOperationError

if TYPE_CHECKING:
    from lacache.cache.layer import BoundedLayer


class EndlessLayer(CacheLayerMixin, ABC):
    """A layer that holds a bounded number of tokens of a text of any length."""

    is_sliding = False

    def get_max_length(self) -> int:
        """No limit: a text of any length fits."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in older versions."""
        return -1

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refused: what was compacted away cannot come back."""
        refuse_taking_back()


class GroupedLayer(EndlessLayer, ABC):
    """One that a plan rules, with its KV heads in one group or in several."""

    @property
    @abstractmethod
    def parts(self) -> tuple[BoundedLayer, ...]:
        """What is stored, one part for each group."""

    @abstractmethod
    def key_lengths(self) -> tuple[int, ...]:
        """Keys that the open forward attends to: for each KV head, or one number for all."""

    @abstractmethod
    def part_of(self, head: int | None) -> BoundedLayer:
        """Where a KV head is.

        Raises:
            InputError: heads differ and none was given, or there is no such one.
        """

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that `query_length` new tokens will attend to.

        Of the first part, where there are several: their masks come from `lacache.cache.masks`.
        """
        return self.parts[0].group.mask_sizes(query_length)

    def get_seq_length(self) -> int:
        """Tokens ever seen, which is how transformers counts positions."""
        return self.parts[0].group.state.num_seen


def refuse_taking_back() -> NoReturn:
    """Raise UnsupportedOperationError for whatever would take tokens back."""
    raise UnsupportedOperationError(
        "taking tokens back (crop, assisted decoding, prompt lookup) needs tokens that a "
        "compaction may have dropped; leave assistant_model and prompt_lookup_num_tokens out, "
        "or use transformers' DynamicCache"
    )

"""Watching what a cache holds while a run uses it, so that no method can hold more than it says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from lacache.cache import HookedCache
from lacache.cache.layers import layer_bytes
from lacache.errors import LaCacheError
from lacache.models.decoder import find_decoder, given_cache
from lacache.models.model_info import model_info


@final
class ProtocolError(LaCacheError):
    """A method that did what the protocol of its run forbids."""


@final
class Watch:
    """What a cache held after every forward of a run.

    Bytes are keys and values of all layers, native ones included: the most of what the cache
    reports, of what its layers store (when a forward ends, and when the cache has closed it), and
    of what they give to the attention. So what is dropped right after the attention counts too.

    Args:
        model: the model that the cache was made from.
        cache: what to watch.
        capacity: tokens per layer that it may hold on average; None for no limit.
        on_tokens: called with the number of new tokens after each forward.
    """

    def __init__(
        self,
        model: Any,
        cache: HookedCache,
        *,
        capacity: int | None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        self._facts = model_info(model)
        self._growing = {layer.index for layer in self._facts.growing}
        self._decoder = find_decoder(model)
        self._cache = cache
        self._capacity = capacity
        self._on_tokens = on_tokens
        self._num_seen = cache.report().num_seen
        self._weighted = 0.0
        self._tokens = 0
        self._dense = False
        self._attended = 0
        self._at_end = 0
        self.peak_bytes = 0.0

    @property
    def mean_bytes(self) -> float:
        """Averaged over the tokens: what is held right after each, were they read one by one."""
        return self._weighted / self._tokens if self._tokens else 0.0

    @property
    def full_bytes(self) -> int:
        """What a full cache would hold now."""
        return self._num_seen * self._facts.bytes_per_token + self._native_bytes()

    @contextmanager
    def watching(self, *, dense: bool = False) -> Iterator["Watch"]:
        """Watch every forward inside of the block; the cache must not be copied there.

        Args:
            dense: the block reads with a full cache, and each of its tokens counts as what is
                left in the end.

        Raises:
            ProtocolError: the cache held more than its capacity.
        """
        self._dense = dense
        begun = self._num_seen
        # The first hook runs before the cache closes the forward, the last one after.
        hooks = [
            self._decoder.register_forward_hook(self._ends, with_kwargs=True, prepend=True),
            self._decoder.register_forward_hook(self._closed, with_kwargs=True),
        ]
        update = self._cache.update

        def watched(keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            given = update(keys, values, layer_idx, *args, **kwargs)
            self._attended += self._given_bytes(*given, layer_idx)
            return given

        # Of this one cache, and as long as it is watched: no hook of torch sees keys and values.
        self._cache.update = watched  # type: ignore[assignment]
        try:
            yield self
        finally:
            del self._cache.update  # the class's own shows again
            for hook in hooks:
                hook.remove()
        if dense:
            held = self._held()
            self._note(self._num_seen - begun, peak=held, mean=held)

    def _ends(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if given_cache(kwargs) is self._cache:
            self._at_end = max(self._stored(), self._attended + self._native_bytes())
            self._attended = 0

    def _closed(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if given_cache(kwargs) is not self._cache:
            return
        num_seen = self._cache.report().num_seen
        num_new = num_seen - self._num_seen
        self._num_seen = num_seen
        if not self._dense:
            held = self._held()
            # The tokens of one forward came one by one, as far as the average is concerned.
            growth = self._facts.bytes_per_token * (num_new - 1) / 2
            self._note(num_new, peak=max(held, self._at_end), mean=max(held - growth, 0.0))
        if self._on_tokens is not None:
            self._on_tokens(num_new)

    def _note(self, num_new: int, *, peak: float, mean: float) -> None:
        """Count tokens, and raise ProtocolError if the peak is too high."""
        self._weighted += num_new * mean
        self._tokens += num_new
        self.peak_bytes = max(self.peak_bytes, peak)
        if self._capacity is None:
            return
        allowed = self._capacity * self._facts.bytes_per_token + self._native_bytes()
        if peak > allowed:
            raise ProtocolError(
                f"the cache held {peak:,.0f} bytes after token {self._num_seen:,}, and its "
                f"capacity of {self._capacity:,} tokens per layer allows {allowed:,}; mend the "
                "method, since a run must never hold more than its budget"
            )

    def _given_bytes(self, keys: Tensor, values: Tensor, layer_idx: int) -> int:
        """Of keys and values [B, Hkv, N, D] without what only fills up shorter heads."""
        if layer_idx not in self._growing:
            return 0
        lengths = self._cache.key_lengths(layer_idx)
        given = layer_bytes(keys, values)
        if lengths is None:
            return given
        # Whole numbers, since a cache may use its budget to the last byte.
        return given * sum(lengths) // (len(lengths) * keys.shape[-2])

    def _held(self) -> float:
        return float(max(self._cache.report().bytes, self._stored()))

    def _stored(self) -> int:
        return sum(
            layer_bytes(layer.keys, layer.values)
            for layer in self._cache.layers
            if isinstance(layer, CacheLayerMixin)
        )

    def _native_bytes(self) -> int:
        return sum(
            layer_bytes(layer.keys, layer.values)
            for index, layer in enumerate(self._cache.layers)
            if index not in self._growing and isinstance(layer, CacheLayerMixin)
        )

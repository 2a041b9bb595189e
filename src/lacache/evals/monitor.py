"""Monitor the bytes that a cache holds during a run, so that no policy exceeds its budget."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from lacache.cache import HookedCache
from lacache.cache.codecs import find_codecs
from lacache.cache.encoded import bytes_per_token
from lacache.cache.layers import layer_bytes
from lacache.common.records import Record
from lacache.errors import LaCacheError
from lacache.evals.policies import open_cache
from lacache.models.decoder import find_decoder, given_cache
from lacache.models.model_info import model_info
from lacache.policies import Budget, Policy


@final
class ProtocolError(LaCacheError):
    """A policy did what the protocol of its run forbids."""


@final
class CacheMonitor:
    """Record what a cache holds after every forward of a run.

    Bytes are keys and values of all layers, native ones included, in the type that the cache stores
    them in. They are the most of what the cache reports, of what its layers store (when a forward
    ends, and when the cache has closed it), and of what the tokens take that they give to the
    attention, so what is evicted right after the attention counts too. The decoded copy that the
    attention of one layer reads does not count.

    Args:
        model: the model that the cache was made from.
        cache: the cache.
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
        self.cache = cache
        self.capacity = capacity
        self.peak_bytes = 0.0
        self.trace: list[tuple[int, int, int]] = []
        """After each forward: tokens seen, tokens per layer, bytes."""
        self._info = model_info(model)
        self._growing = {layer.index for layer in self._info.growing}
        self._codecs = find_codecs(cache.kv_dtype, self._info.dtype)
        self._token_bytes = bytes_per_token(self._info, cache.kv_dtype)
        self._decoder = find_decoder(model)
        self._on_tokens = on_tokens
        self._num_seen = cache.report().num_seen
        self._weighted = 0.0
        self._tokens = 0
        self._dense = False
        self._attended = 0
        self._at_end = 0

    @property
    def mean_bytes(self) -> float:
        """Mean bytes held right after each token, as if tokens came one by one."""
        return self._weighted / self._tokens if self._tokens else 0.0

    @property
    def full_bytes(self) -> int:
        """Bytes that a full cache would hold now, in the type of this cache."""
        return self._num_seen * self._token_bytes + self._native_bytes()

    def sizes(self) -> Record:
        """Return the bytes that a record has: the most held, their mean, and a full cache's."""
        return {
            "peak_bytes": round(self.peak_bytes),
            "mean_bytes": round(self.mean_bytes),
            "full_bytes": self.full_bytes,
        }

    @contextmanager
    def monitoring(self, *, dense: bool = False) -> Iterator["CacheMonitor"]:
        """Monitor every forward inside of the block; the cache must not be copied there.

        Args:
            dense: the block prefills with a full cache, and each of its tokens counts as what is
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
        update = self.cache.update

        def monitored(keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **more: Any) -> Any:
            given = update(keys, values, layer_idx, *args, **more)
            self._attended += self._given_bytes(*given, layer_idx)
            return given

        # Only this cache, and only in this block: no hook of torch sees keys and values.
        self.cache.update = monitored  # type: ignore[assignment]
        try:
            yield self
        finally:
            del self.cache.update  # the class's own shows again
            for hook in hooks:
                hook.remove()
        if dense:
            held = float(max(self.cache.report().bytes, self._stored()))
            self._add(self._num_seen - begun, peak=held, mean=held)

    def take(self, layers: Sequence[tuple[int, Tensor, Tensor]], num_tokens: int) -> None:
        """Give the cache keys and values of a forward that another cache had; count as for its own.

        Use it inside of `monitoring`, for the first input of a cache, as one chunk.

        Args:
            layers: index, keys [1, Hkv, N, D] as the model gave them, and values, in order.
            num_tokens: N.
        """
        self.cache.expect_prompt(num_tokens)
        self.cache.begin(num_tokens)
        for layer_idx, keys, values in layers:
            self.cache.update(keys, values, layer_idx)
        self._count_end()
        self.cache.commit()
        self._count_closed()

    def _ends(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if given_cache(kwargs) is self.cache:
            self._count_end()

    def _closed(self, decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if given_cache(kwargs) is self.cache:
            self._count_closed()

    def _count_end(self) -> None:
        self._at_end = max(self._stored(), self._attended + self._native_bytes())
        self._attended = 0

    def _count_closed(self) -> None:
        report = self.cache.report()
        num_new = report.num_seen - self._num_seen
        self._num_seen = report.num_seen
        held = max(report.bytes, self._stored())
        if not self._dense:
            # The tokens of one forward came one by one, as far as the average is concerned.
            growth = self._token_bytes * (num_new - 1) / 2
            self._add(num_new, peak=max(held, self._at_end), mean=max(held - growth, 0.0))
        self.trace.append((report.num_seen, report.num_cached, held))
        if self._on_tokens is not None:
            self._on_tokens(num_new)

    def _add(self, num_new: int, *, peak: float, mean: float) -> None:
        """Count tokens, and raise ProtocolError if the peak is too high."""
        self._weighted += num_new * mean
        self._tokens += num_new
        self.peak_bytes = max(self.peak_bytes, peak)
        if self.capacity is None:
            return
        allowed = self.capacity * self._token_bytes + self._native_bytes()
        if peak > allowed:
            raise ProtocolError(
                f"the cache held {peak:,.0f} bytes after token {self._num_seen:,}, and its "
                f"capacity of {self.capacity:,} tokens per layer allows {allowed:,}; mend the "
                "policy, since a run must never hold more than its budget"
            )

    def _given_bytes(self, keys: Tensor, values: Tensor, layer_idx: int) -> int:
        """Return what keys and values [B, Hkv, N, D] take where they are stored.

        The padding of short heads takes nothing.
        """
        if layer_idx not in self._growing:
            return 0
        key_bytes, value_bytes = (
            codec.vector_bytes(states.shape[-1])
            for codec, states in zip(self._codecs, (keys, values), strict=True)
        )
        batch, num_heads, num_keys, _ = keys.shape
        lengths = self.cache.key_lengths(layer_idx) or (num_keys,)
        # Whole numbers, since a cache may use its budget to the last byte.
        num_vectors = batch * num_heads * sum(lengths) // len(lengths)
        return num_vectors * (key_bytes + value_bytes)

    def _stored(self, *, without: Collection[int] = ()) -> int:
        return sum(
            layer_bytes(layer)
            for index, layer in enumerate(self.cache.layers)
            if index not in without and isinstance(layer, CacheLayerMixin)
        )

    def _native_bytes(self) -> int:
        return self._stored(without=self._growing)


def open_monitored(
    model: Any,
    policy: Policy,
    budget: Budget,
    prompt_tokens: int,
    *,
    dense: bool,
    smallest: int = 1,
    kv_dtype: str | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> CacheMonitor:
    """Open an empty cache and the monitor that holds it to its budget.

    Args:
        model: a causal language model of transformers.
        policy: what the cache keeps; without a budget there is no limit.
        budget: in bytes, it is for the growing layers of one sequence, as they are stored.
        prompt_tokens: what a share is of.
        dense: prefill the first input with a full cache.
        smallest: tokens that a share is never below.
        kv_dtype: what keys and values are stored in; None is the model's own type.
        on_tokens: called with the number of new tokens after each forward.

    Raises:
        ConfigError: the policy cannot work with this capacity or model.
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    capacity = budget.capacity(
        bytes_per_token=bytes_per_token(model_info(model), kv_dtype),
        prompt_tokens=prompt_tokens,
        smallest=smallest,
    )
    cache = open_cache(model, policy, capacity, dense=dense, kv_dtype=kv_dtype)
    limit = capacity if policy.takes_budget else None
    return CacheMonitor(model, cache, capacity=limit, on_tokens=on_tokens)

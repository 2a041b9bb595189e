"""A transformers Cache that evicts by score."""

from collections.abc import Sequence
from typing import Any, final
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from lacache.cache import CacheReport
from lacache.cache.encoded import bytes_per_token
from lacache.cache.hooks import install_hooks, install_mask_hooks
from lacache.cache.layers import layer_bytes, refuse_crop
from lacache.errors import ConfigError, InputError, ModelError, UnsupportedOperationError
from lacache.evals.baselines.attention import MonitoredCache, install_attention_hooks
from lacache.evals.baselines.attention_policies import AttentionPolicy
from lacache.evals.baselines.counts import TokenCounts
from lacache.evals.baselines.layer import ScoredLayer
from lacache.evals.baselines.policy import ScoredPolicy
from lacache.models.decoder import find_decoder
from lacache.models.model_info import model_info

DENSE_BLOCK = 256
"""Tokens of a dense input whose attention weights are computed at once."""


@final
class ScoredCache(MonitoredCache):
    """A cache in which each KV head of each layer keeps the tokens of highest score.

    Whenever a layer is full before a new token, every layer evicts down to its capacity minus
    `evict_batch`. One sequence only. `report().bytes` counts keys and values, not what a score
    remembers besides.

    Args:
        model: a causal language model of transformers; its decoder and attention modules get
            forward hooks that act on these caches only.
        policy: the score and its settings.
        capacity: tokens per layer, or one number for each layer with a growing cache.
        dense: prefill the first input with a full cache and then cut it down to the count that
            chunks would leave, so that as many bytes are held at every moment as by any other
            policy with this capacity and evict_batch.
        kv_dtype: what keys and values are stored in, such as "int8"; None is the model's own type.

    Raises:
        ConfigError: the capacity is too small for what is never evicted, or does not fit the model,
            or there is no such kv_dtype.
        UnsupportedModelError: the model's caches or positions are not understood, or its attention
            weights are not available.
    """

    def __init__(
        self,
        model: Any,
        policy: ScoredPolicy,
        capacity: int | Sequence[int],
        *,
        dense: bool = False,
        kv_dtype: str | None = None,
    ) -> None:
        super().__init__([], kv_dtype)
        info = model_info(model)
        bytes_per_token(info, kv_dtype)  # refuses heads that the type does not fit
        depth = len(info.growing)
        mean = capacity if isinstance(capacity, int) else sum(capacity) // max(1, len(capacity))
        policy = policy.at(mean)
        capacities = (
            policy.capacities(capacity, depth) if isinstance(capacity, int) else tuple(capacity)
        )
        if len(capacities) != depth:
            raise ConfigError(
                f"{len(capacities)} capacities were given for {depth} layers with a growing cache; "
                f"give {depth}"
            )
        info.validate_capacity(max(capacities))
        evict_batch = policy.slots_per_compaction(mean)
        _validate_room(min(capacities), evict_batch, policy)
        counts = TokenCounts(capacities, evict_batch)
        self.layers: list[Any] = DynamicCache(config=info.text_config).layers
        for i, layer in enumerate(info.growing):
            self.layers[layer.index] = ScoredLayer(
                policy, counts, i, layer.rotation, kv_dtype, layer.key_center
            )
        decoder = find_decoder(model)
        install_hooks(decoder)
        if len(set(capacities)) > 1:
            install_mask_hooks(decoder, [layer.index for layer in info.growing])
        if isinstance(policy, AttentionPolicy):
            install_attention_hooks(decoder)
        self._decoder = ref(decoder)
        self._info = info
        self._counts = counts
        self._policy = policy
        self._dense = dense
        self._num_new = 0
        self._wants_weights = False

    def kept_tokens(self, layer_idx: int, kv_head: int) -> list[int]:
        """Return the tokens that a KV head holds, as indices into the sequence, in slot order.

        Raises:
            InputError: there is no such layer or head, or the layer evicts nothing by score.
        """
        layer = self.layers[layer_idx] if 0 <= layer_idx < len(self.layers) else None
        if not isinstance(layer, ScoredLayer):
            growing = [layer.index for layer in self._info.growing]
            raise InputError(f"layer_idx={layer_idx} must be one of {growing}")
        kept: list[list[int]] = layer.tokens().tolist()
        if not 0 <= kv_head < len(kept):
            raise InputError(f"kv_head={kv_head} must be in 0 to {len(kept) - 1}")
        return kept[kv_head]

    def report(self) -> CacheReport:
        """Return the cache's counts; those of layers are means, rounded down."""
        counts = self._counts
        depth = len(counts.held)
        num_cached = sum(counts.held) // depth
        seen = torch.zeros(counts.num_seen, dtype=torch.bool)
        for layer in self._scored_layers():
            seen[layer.tokens().flatten().cpu()] = True
        num_bytes = sum(
            layer_bytes(layer) for layer in self.layers if isinstance(layer, CacheLayerMixin)
        )
        return CacheReport(
            num_seen=counts.num_seen,
            num_cached=num_cached,
            num_evicted=counts.num_seen - num_cached,
            capacity=sum(counts.capacities) // depth,
            compactions=counts.compactions,
            bytes=num_bytes,
            held_bytes=num_bytes,
            coverage=int(seen.sum()),
            most_cached=max(counts.held),
        )

    def reset(self) -> None:
        """Remove all tokens; policy and capacity stay."""
        # Native layers are made anew, as some versions of transformers only zero them.
        for i, fresh in enumerate(DynamicCache(config=self._info.text_config).layers):
            layer = self.layers[i]
            if isinstance(layer, ScoredLayer):
                layer.reset()
            else:
                self.layers[i] = fresh
        self._counts.clear()
        self._num_new = 0

    @property
    def wants_weights(self) -> bool:
        """Whether the score needs the attention weights of the forward that is open."""
        return self._wants_weights

    def key_lengths(self, layer_idx: int) -> tuple[int, ...] | None:
        """Return the keys that a layer gives to the attention of the open forward.

        None where all layers hold equally many, so that the model's own mask fits.
        """
        growing = [layer.index for layer in self._info.growing]
        if len(set(self._counts.held)) == 1 or layer_idx not in growing:
            return None
        return (self._counts.held[growing.index(layer_idx)] + self._num_new,)

    def observe(self, layer_idx: int, weights: Tensor | None) -> None:
        """Pass attention weights to their layer."""
        layer = self.layers[layer_idx]
        if isinstance(layer, ScoredLayer):
            layer.observe(weights)

    def expect_prompt(self, num_tokens: int) -> None:
        """Note the length of a dense input: the longest chunk of it so far."""
        if self._dense and self._counts.num_seen == 0:
            self._info.validate_dense(num_tokens)
            self._counts.dense_tokens = max(self._counts.dense_tokens, num_tokens)

    def next_chunk(self, num_tokens: int) -> int:
        """Return the tokens up to the next compaction, or of a dense input.

        A dense input is cut only for its attention weights, which are computed block by block, and
        only where the score needs them.
        """
        room = min(num_tokens, self._counts.room())
        if not self._counts.is_dense or not isinstance(self._policy, AttentionPolicy):
            return room
        unseen = self._unseen()
        return min(room, unseen) if unseen else min(room, DENSE_BLOCK)

    def validate_decoder(self, decoder: nn.Module) -> None:
        """Raise ModelError unless the cache was made for this decoder."""
        if decoder is not self._decoder():
            raise ModelError(
                "this cache was made from another model; make one with ScoredCache(model, ...)"
            )

    def validate_input(self, first_position: int | None, batch_size: int) -> None:
        """Raise InputError unless the input is one sequence that continues the cached one."""
        num_seen = self._counts.num_seen
        if first_position is not None and first_position != num_seen:
            raise InputError(
                f"the input starts at position {first_position}, but the cache has seen "
                f"{num_seen} tokens; give what follows, or call cache.reset()"
            )
        if batch_size != 1:
            raise InputError(
                f"the input has {batch_size} sequences, and a scored cache takes one; give one"
            )

    def next_positions(self, num_new: int) -> Tensor:
        """Return position ids [Q]: slots of the longest layer, where the model allows."""
        # Native sliding layers keep rotated keys, so there positions must go on counting.
        native = self._info.has_native
        first = self._counts.num_seen if native else max(self._counts.settled())
        return torch.arange(first, first + num_new)

    def begin(self, num_new: int) -> None:
        """Evict if it is due, and open a forward.

        Raises:
            UnsupportedOperationError: the last forward was interrupted.
        """
        if self._num_new:
            raise UnsupportedOperationError(
                "the last forward was interrupted, so layers may hold different tokens; call "
                "cache.reset() and prefill again"
            )
        first_position = int(self.next_positions(1))
        self._num_new = num_new
        self._wants_weights = isinstance(self._policy, AttentionPolicy) and self._unseen() == 0
        self._counts.settle()
        self._evict()
        for layer in self._scored_layers():
            layer.open(first_position, self._counts.num_seen)

    def commit(self) -> None:
        """Close a forward; after a dense input, evict."""
        for layer in self._scored_layers():
            layer.close(watched=self._wants_weights)
        self._counts.insert(self._num_new)
        self._evict()
        for layer, held in zip(self._scored_layers(), self._counts.held, strict=True):
            if layer.num_stored() != held:
                raise UnsupportedOperationError(
                    f"a layer stored {layer.num_stored()} tokens where {held} were counted, as "
                    "the model did not pass the cache on (gradient checkpointing does that); call "
                    "model.eval() and cache.reset()"
                )
        self._num_new = 0

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Raise UnsupportedOperationError, as evicted tokens cannot come back."""
        refuse_crop()

    def activate_past_recording(self) -> None:
        """Refused: it announces that tokens will be taken back."""
        refuse_crop()

    def _unseen(self) -> int:
        """Return how many of the next tokens of a dense input the score does not need."""
        counts = self._counts
        if not isinstance(self._policy, AttentionPolicy) or self._policy.num_queries is None:
            return 0
        return max(0, counts.dense_tokens - counts.num_seen - self._policy.num_queries)

    def _evict(self) -> None:
        for layer, count in zip(self._scored_layers(), self._counts.held, strict=True):
            layer.evict(count)

    def _scored_layers(self) -> list[ScoredLayer]:
        return [layer for layer in self.layers if isinstance(layer, ScoredLayer)]


def _validate_room(least: int, evict_batch: int, policy: ScoredPolicy) -> None:
    """Raise ConfigError unless a full layer of `least` tokens can always free its slots."""
    protected = policy.protected(least)
    needed = policy.sinks + protected + evict_batch
    if needed > least:
        raise ConfigError(
            f"capacity={least} must be at least {needed} = sinks {policy.sinks} + newest "
            f"{protected} that {type(policy).__name__} never evicts + evict_batch {evict_batch}; "
            # Newest and evict_batch may be shares of the capacity, so `needed` may not suffice.
            f"try capacity={3 * needed}"
        )

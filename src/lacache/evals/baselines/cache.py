"""A transformers Cache that evicts by score."""

from collections.abc import Sequence
from typing import Any, final
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from lacache.cache import CacheReport
from lacache.cache.hooks import install_hooks, install_mask_hooks
from lacache.cache.layers import layer_bytes, refuse_crop
from lacache.common.validation import validate_int
from lacache.errors import ConfigError, InputError, ModelError, UnsupportedOperationError
from lacache.evals.baselines.attention import WatchingCache, watch
from lacache.evals.baselines.counts import Counts
from lacache.evals.baselines.layer import ScoredLayer
from lacache.evals.baselines.ledger import Ledger
from lacache.evals.baselines.scorer import AttentionScorer, Scorer
from lacache.models.decoder import find_decoder
from lacache.models.model_info import ModelInfo, model_info

DENSE_BLOCK = 256
"""Tokens of a dense input whose attention weights are computed at once."""


@final
class ScoredCache(WatchingCache):
    """Each KV head of each layer keeps the tokens of highest score; see `from_model`.

    One row only. `report().bytes` counts keys and values; what a score remembers besides is not
    counted.
    """

    def __init__(
        self,
        model: Any,
        info: ModelInfo,
        scorer: Scorer,
        ledger: Ledger,
        layers: list[Any],
        *,
        dense: bool,
    ) -> None:
        """Make a cache with `ScoredCache.from_model`."""
        super().__init__(layers)
        self._decoder = ref(find_decoder(model))
        self._facts = info
        self._ledger = ledger
        self._scorer = scorer
        self._dense = dense
        self._num_new = 0
        self._wants_weights = False

    @classmethod
    def from_model(
        cls,
        model: Any,
        scorer: Scorer,
        capacity: int | Sequence[int],
        *,
        evict_batch: int = 1,
        sinks: int = 4,
        dense: bool = False,
    ) -> "ScoredCache":
        """A cache for a causal language model of transformers.

        Whenever a layer is full before a new token, every layer evicts down to its capacity minus
        `evict_batch`. With `dense`, the first input is read with a full cache and then cut down to
        the count that reading it in pieces would leave, so that at every moment as many bytes are
        held as by any other method with this capacity and evict_batch.

        Args:
            model: the model; its decoder and attention modules get forward hooks that act on
                these caches only.
            scorer: what the tokens are kept by.
            capacity: most tokens that a layer ever holds, or one number for each layer with a
                growing cache.
            evict_batch: slots that one compaction frees.
            sinks: first tokens, never evicted.
            dense: read the first input with a full cache.

        Raises:
            ConfigError: the capacity is too small for what is never evicted, or does not fit the
                model.
            UnsupportedModelError: the model's caches or positions are not understood, or its
                attention weights cannot be had.
        """
        validate_int("sinks", sinks, 0)
        info = model_info(model)
        depth = len(info.growing)
        capacities = (capacity,) * depth if isinstance(capacity, int) else tuple(capacity)
        if len(capacities) != depth:
            raise ConfigError(
                f"{len(capacities)} capacities were given for {depth} layers with a growing cache; "
                f"give {depth}"
            )
        if capacities:
            _validate_room(min(capacities), evict_batch, scorer, sinks)
        ledger = Ledger(Counts(capacities, evict_batch))
        layers: list[Any] = DynamicCache(config=info.text_config).layers
        for i, layer in enumerate(info.growing):
            layers[layer.index] = ScoredLayer(scorer, ledger, i, layer.rotation, sinks)
        decoder = find_decoder(model)
        install_hooks(decoder)
        if len(set(capacities)) > 1:
            install_mask_hooks(decoder, [layer.index for layer in info.growing])
        if isinstance(scorer, AttentionScorer):
            watch(decoder)
        return cls(model, info, scorer, ledger, layers, dense=dense)

    def kept_tokens(self, layer_idx: int) -> list[list[int]]:
        """For each KV head, the original numbers of the tokens that a layer holds now.

        Raises:
            InputError: no such layer, or one that evicts nothing by score.
        """
        layer = self.layers[layer_idx] if 0 <= layer_idx < len(self.layers) else None
        if not isinstance(layer, ScoredLayer):
            growing = [layer.index for layer in self._facts.growing]
            raise InputError(f"layer_idx={layer_idx} must be one of {growing}")
        kept: list[list[int]] = layer.tokens().tolist()
        return kept

    def report(self) -> CacheReport:
        """Where the cache stands; counts of layers are means, rounded down."""
        ledger = self._ledger
        depth = len(ledger.held)
        num_cached = sum(ledger.held) // depth
        seen = torch.zeros(ledger.num_seen, dtype=torch.bool)
        for layer in self._scored_layers():
            seen[layer.tokens().flatten().cpu()] = True
        return CacheReport(
            num_seen=ledger.num_seen,
            num_cached=num_cached,
            num_evicted=ledger.num_seen - num_cached,
            capacity=sum(ledger.counts.capacities) // depth,
            compactions=ledger.compactions,
            bytes=sum(
                layer_bytes(layer.keys, layer.values)
                for layer in self.layers
                if isinstance(layer, CacheLayerMixin)
            ),
            coverage=int(seen.sum()),
            most_cached=max(ledger.held),
        )

    def reset(self) -> None:
        """Forget everything: the cache is as new, with the same configuration."""
        # Native layers are made anew, as some versions of transformers only zero them.
        for i, fresh in enumerate(DynamicCache(config=self._facts.text_config).layers):
            layer = self.layers[i]
            if isinstance(layer, ScoredLayer):
                layer.reset()
            else:
                self.layers[i] = fresh
        self._ledger.clear()
        self._num_new = 0

    @property
    def wants_weights(self) -> bool:
        """Whether the score needs the attention weights of the forward that is open."""
        return self._wants_weights

    def key_lengths(self, layer_idx: int) -> tuple[int, ...] | None:
        """Keys that a layer gives to the attention of the forward that is open.

        None where all layers hold equally many, so that the model's own mask fits.
        """
        growing = [layer.index for layer in self._facts.growing]
        if len(set(self._ledger.held)) == 1 or layer_idx not in growing:
            return None
        return (self._ledger.held[growing.index(layer_idx)] + self._num_new,)

    def observe(self, layer_idx: int, weights: Tensor | None) -> None:
        """Hand attention weights to their layer."""
        layer = self.layers[layer_idx]
        if isinstance(layer, ScoredLayer):
            layer.observe(weights)

    def expect_prompt(self, num_tokens: int) -> None:
        """Learn how long a dense input is: the longest piece seen of it."""
        if self._dense and self._ledger.num_seen == 0:
            self._ledger.dense_tokens = max(self._ledger.dense_tokens, num_tokens)

    def next_chunk(self, num_tokens: int) -> int:
        """Tokens up to the next compaction, or of a dense input.

        A dense input is cut only for the sake of its attention weights, which are not computed
        where the score does not look, and elsewhere block by block.
        """
        room = min(num_tokens, self._ledger.room())
        if not self._ledger.is_dense or not isinstance(self._scorer, AttentionScorer):
            return room
        unseen = self._unseen()
        return min(room, unseen) if unseen else min(room, DENSE_BLOCK)

    def validate_decoder(self, decoder: nn.Module) -> None:
        """Refuse another model."""
        if decoder is not self._decoder():
            raise ModelError(
                "this cache was made from another model; make one with "
                "ScoredCache.from_model(model, ...)"
            )

    def validate_input(self, first_position: int | None, batch_size: int) -> None:
        """Refuse several rows, and input that does not go on where the text stands."""
        num_seen = self._ledger.num_seen
        if first_position is not None and first_position != num_seen:
            raise InputError(
                f"the input starts at position {first_position}, but the cache has seen "
                f"{num_seen} tokens; give what follows, or call cache.reset()"
            )
        if batch_size != 1:
            raise InputError(
                f"the input has {batch_size} rows, and a scored cache reads one; give one row"
            )

    def next_positions(self, num_new: int) -> Tensor:
        """Positions [Q] for the next forward: slots of the longest layer, where possible."""
        # Native sliding layers keep rotated keys, so there positions must go on counting.
        native = self._facts.has_native
        first = self._ledger.num_seen if native else max(self._ledger.settled())
        return torch.arange(first, first + num_new)

    def begin(self, num_new: int, first_position: int) -> None:
        """Evict if it is due, and open a forward.

        Raises:
            UnsupportedOperationError: the last forward was interrupted.
        """
        if self._num_new:
            raise UnsupportedOperationError(
                "the last forward was interrupted, so layers may hold different tokens; call "
                "cache.reset() and read the text again"
            )
        self._num_new = num_new
        self._wants_weights = isinstance(self._scorer, AttentionScorer) and self._unseen() == 0
        self._ledger.settle()
        self._evict()
        for layer in self._scored_layers():
            layer.open(first_position, self._ledger.num_seen)

    def commit(self) -> None:
        """Close a forward; after a dense input, evict."""
        for layer in self._scored_layers():
            layer.close(watched=self._wants_weights)
        self._ledger.insert(self._num_new)
        self._evict()
        for layer, held in zip(self._scored_layers(), self._ledger.held, strict=True):
            if layer.num_stored() != held:
                raise UnsupportedOperationError(
                    f"a layer stored {layer.num_stored()} tokens where {held} were counted, as "
                    "the model did not pass the cache on (gradient checkpointing does that); call "
                    "model.eval() and cache.reset()"
                )
        self._num_new = 0

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refused: what was evicted cannot come back."""
        refuse_crop()

    def activate_past_recording(self) -> None:
        """Refused: it announces that tokens will be taken back."""
        refuse_crop()

    def _unseen(self) -> int:
        """How many of the next tokens of a dense input the score does not look at."""
        ledger = self._ledger
        if not isinstance(self._scorer, AttentionScorer) or self._scorer.looks is None:
            return 0
        return max(0, ledger.dense_tokens - ledger.num_seen - self._scorer.looks)

    def _evict(self) -> None:
        for layer, count in zip(self._scored_layers(), self._ledger.held, strict=True):
            layer.evict(count)

    def _scored_layers(self) -> list[ScoredLayer]:
        return [layer for layer in self.layers if isinstance(layer, ScoredLayer)]


def _validate_room(least: int, evict_batch: int, scorer: Scorer, sinks: int) -> None:
    """Raise ConfigError unless a full layer of `least` tokens can always free its slots."""
    protected = scorer.protected(least)
    needed = sinks + protected + evict_batch
    if needed > least:
        raise ConfigError(
            f"capacity={least} must be at least {needed} = sinks {sinks} + newest {protected} that "
            # Newest and evict_batch may be shares of the capacity, so that needed alone may not do.
            f"{type(scorer).__name__} never evicts + evict_batch {evict_batch}; "
            f"try capacity={3 * needed}"
        )

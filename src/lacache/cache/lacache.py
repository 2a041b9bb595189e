"""The cache that users hold: a transformers Cache of bounded size."""

from collections.abc import Iterable
from typing import Any, Literal, final
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from lacache.cache.facts import ModelFacts, find_decoder, model_facts
from lacache.cache.group import LayerGroup
from lacache.cache.guard import guard
from lacache.cache.layer import BoundedLayer, layer_bytes, refuse_taking_back
from lacache.cache.reading import CacheReport, ReadingCache
from lacache.core.budget import Budget
from lacache.core.errors import ConfigError, InputError, ModelError, UnsupportedOperationError
from lacache.core.kept import coverage
from lacache.core.resolve import PolicySource, policy_source
from lacache.core.schedule import Policy

Prefill = Literal["segmented", "dense"]


@final
class LaCache(ReadingCache):
    """Every layer keeps equally many tokens, however long the text; see `from_model`."""

    def __init__(
        self,
        model: Any,
        facts: ModelFacts,
        policy_for: PolicySource,
        prefill: Prefill,
        layers: list[Any],
        group: LayerGroup,
    ) -> None:
        """Not for users: make a cache with `LaCache.from_model`."""
        super().__init__(layers)
        self._decoder = ref(find_decoder(model))
        self._facts = facts
        self._policy_for = policy_for
        self._prefill = prefill
        self._group = group
        self._prompt_tokens = 1

    @classmethod
    def from_model(
        cls,
        model: Any,
        config: Policy | Budget | None = None,
        *,
        budget: Budget | None = None,
        policy: str = "ladder",
        span: int | None = None,
        overlap: int | None = None,
        sinks: int | None = None,
        recent: int | None = None,
        refill: int | None = None,
        geometry: str | None = None,
        unit: int | None = None,
        window_layers: Iterable[int] | None = None,
        prefill: Prefill = "segmented",
    ) -> "LaCache":
        """A cache for `model`, any causal language model of transformers.

        Args:
            model: the model; its decoder gets a forward hook that acts on these caches only.
            config: a policy (LadderConfig, SinkWindow, Full), or a budget.
            budget: an int is tokens per layer (the capacity); a float in (0, 1] is a share of the
                first prompt, rounded up, but never less than the policy can work with (of its
                first chunk with generate's prefill_chunk_size, as the rest is not known then);
                a text such as "64MiB" is bytes for one sequence
                over all layers with a growing cache, rounded down.
            policy: "ladder", "streaming" or "full", for a budget.
            span: see LadderConfig; without it, half of the layers.
            overlap: see LadderConfig; without span and overlap, four fifths of the span.
            sinks: see LadderConfig, as the others.
            recent: newest tokens that no compaction touches.
            refill: slots that one compaction frees; larger reads long prompts faster.
            geometry: "interleaved" or "consecutive".
            unit: neighbouring tokens kept or dropped together.
            window_layers: layers, counted over those with a growing cache, that keep a window.
            prefill: "segmented" compacts while it reads, so memory is bounded at all times;
                "dense" reads the first input with a full cache and then compacts it, as the
                paper does for LongBench and needles.

        Raises:
            ConfigError: the budget or an option cannot work for this model.
            UnsupportedModelError: the model's caches or positions are not understood.
        """
        if prefill not in ("segmented", "dense"):
            raise ConfigError(
                f"prefill={prefill!r} must be 'segmented' or 'dense'; try 'segmented'"
            )
        options = {
            "span": span,
            "overlap": overlap,
            "sinks": sinks,
            "recent": recent,
            "refill": refill,
            "geometry": geometry,
            "unit": unit,
            "window_layers": window_layers,
        }
        options = {name: value for name, value in options.items() if value is not None}
        facts = model_facts(model)
        policy_for = policy_source(
            config,
            budget,
            policy,
            options,
            num_layers=len(facts.growing),
            bytes_per_token=facts.bytes_per_token,
        )
        group = LayerGroup(policy_for(1).bind(len(facts.growing)))
        layers: list[Any] = DynamicCache(config=facts.text_config).layers
        for depth, layer in enumerate(facts.growing):
            layers[layer.index] = BoundedLayer(group, depth, layer.rotation)
        guard(find_decoder(model))
        return cls(model, facts, policy_for, prefill, layers, group)

    def __repr__(self) -> str:
        return f"LaCache({self.policy}, {self.report()})"

    @property
    def policy(self) -> Policy:
        """What the layers keep; with a share as budget, as far as it is known yet."""
        return self._policy_for(self._prompt_tokens)

    def kept_tokens(self, layer_idx: int) -> list[int]:
        """Original numbers of the tokens that a layer holds now, in slot order.

        Raises:
            InputError: no such layer.
            UnsupportedOperationError: the layer is native (sliding, linear, shared).
        """
        if not 0 <= layer_idx < len(self.layers):
            raise InputError(f"layer_idx={layer_idx} must be in 0 to {len(self.layers) - 1}")
        layer = self.layers[layer_idx]
        if not isinstance(layer, BoundedLayer):
            raise UnsupportedOperationError(
                f"layer {layer_idx} is a native {type(layer).__name__}; try one of "
                f"{self.growing_layers}"
            )
        return list(self._group.kept.by_pattern[layer.pattern])

    def report(self) -> CacheReport:
        """Where the cache stands."""
        state = self._group.state
        return CacheReport(
            num_seen=state.num_seen,
            num_cached=state.num_cached,
            num_evicted=state.num_evicted,
            capacity=self._group.schedule.capacity,
            compactions=self._group.compactions,
            bytes=sum(
                layer_bytes(layer.keys, layer.values)
                for layer in self.layers
                if isinstance(layer, CacheLayerMixin)
            ),
            coverage=coverage(self._group.kept.by_pattern),
        )

    def reset(self) -> None:
        """Forget everything: the cache is as new, with the same configuration."""
        # Native layers are made anew, as some versions of transformers only zero them.
        for i, fresh in enumerate(DynamicCache(config=self._facts.text_config).layers):
            layer = self.layers[i]
            if isinstance(layer, BoundedLayer):
                layer.reset()
            else:
                self.layers[i] = fresh
        self._begin_prompt(1)

    def resolve(self, num_tokens: int) -> None:
        """Set the capacity by the length of the first prompt, the longest piece seen of it."""
        if self._group.state.num_seen == 0 and num_tokens > self._prompt_tokens:
            # An earlier prompt may have been interrupted before any of it counted.
            self.reset()
            self._begin_prompt(num_tokens)

    def next_segment(self, num_tokens: int) -> int:
        """Tokens up to the next compaction, or all in a dense prefill."""
        return num_tokens if self._is_dense() else min(num_tokens, self._group.room())

    def check_decoder(self, decoder: nn.Module) -> None:
        """Refuse another model."""
        if decoder is not self._decoder():
            raise ModelError(
                "this cache was made from another model; make one with LaCache.from_model(model)"
            )

    def check_input(self, first_position: int | None, batch_size: int) -> None:
        """Refuse input that does not go on where the text stands."""
        num_seen = self._group.state.num_seen
        if first_position is not None and first_position != num_seen:
            raise InputError(
                f"the input starts at position {first_position}, but the cache has seen "
                f"{num_seen} tokens; generate() needs the whole text so far and at least one new "
                "token, cache.prefill and lacache.stream need the new tokens alone, and "
                "cache.reset() starts over"
            )
        keys = self._bounded_layers()[0].keys
        if keys is not None and keys.shape[0] != batch_size:
            raise InputError(
                f"the input has {batch_size} rows, but the cache holds {keys.shape[0]}; use "
                "cache.batch_repeat_interleave(n) for n continuations of each row, cache.reset() "
                "or another cache"
            )

    def next_positions(self, num_new: int) -> Tensor:
        """Positions [Q] for the next forward: slots, where the model allows."""
        state = self._group.settled()
        # Native sliding layers keep rotated keys, so there positions must go on counting.
        first = state.num_seen if self._facts.has_native else state.num_cached
        return torch.arange(first, first + num_new)

    def begin(self, num_new: int, first_position: int) -> None:
        """Open a forward."""
        self._group.begin(num_new, first_position, dense=self._is_dense())
        if self._facts.has_native:
            # Native layers change without a word, perhaps before any of ours.
            self._group.touch()

    def commit(self) -> None:
        """Close a forward."""
        self._group.commit()
        num_cached = self._group.state.num_cached
        for layer in self._bounded_layers():
            if layer.num_stored() != num_cached:
                raise UnsupportedOperationError(
                    f"a layer stored {layer.num_stored()} tokens where {num_cached} were counted, "
                    "as the model did not pass the cache on (gradient checkpointing does that); "
                    "call model.eval() and cache.reset()"
                )

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refused: what was compacted away cannot come back."""
        refuse_taking_back()

    def activate_past_recording(self) -> None:
        """Refused: it announces that tokens will be taken back."""
        refuse_taking_back()

    @property
    def growing_layers(self) -> list[int]:
        """Indices of the layers that the policy rules; the others are native."""
        return [layer.index for layer in self._facts.growing]

    def _begin_prompt(self, num_tokens: int) -> None:
        self._prompt_tokens = num_tokens
        self._group.rebind(self.policy.bind(len(self._facts.growing)))

    def _is_dense(self) -> bool:
        return self._prefill == "dense" and self._group.state.num_seen == 0

    def _bounded_layers(self) -> list[BoundedLayer]:
        return [layer for layer in self.layers if isinstance(layer, BoundedLayer)]

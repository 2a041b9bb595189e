"""The cache that users hold: a transformers Cache of bounded size."""

from functools import partial
from typing import Any, Literal, final
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from lacache.cache.encoded import bytes_per_token
from lacache.cache.hooked_cache import HookedCache
from lacache.cache.hooks import install_hooks, install_mask_hooks
from lacache.cache.layer_group import LayerGroup
from lacache.cache.layers import BoundedLayer, PolicyLayer, layer_bytes, refuse_crop
from lacache.cache.report import CacheReport, make_report
from lacache.cache.split_layer import SplitLayer
from lacache.common.validation import validate_prefill
from lacache.errors import InputError, ModelError, UnsupportedOperationError
from lacache.models.decoder import find_decoder
from lacache.models.fingerprint import model_shape
from lacache.models.model_info import model_info
from lacache.policies import (
    DEFAULT_POLICY,
    BoundPolicy,
    BudgetLike,
    Policy,
    bind_policy,
    parse_policy,
    validate_budget,
)
from lacache.policies.schedule import State

Prefill = Literal["chunked", "dense"]


@final
class LaCache(HookedCache):
    """A KV cache of a bounded number of tokens, however long the text.

    For any causal language model of transformers. The model stays as it is; its decoder gets a
    forward hook that acts on these caches only.

    Args:
        model: of transformers.
        budget: an int is tokens per layer (the capacity); a float in (0, 1] is a share of the
            first prompt, rounded up, but never less than the policy can work with (of its first
            chunk with generate's prefill_chunk_size, as the rest is not known then); a text such
            as "64MiB" is bytes for one sequence over all layers with a growing cache, rounded
            down. None for policies that take no budget (full, groups).
        policy: which tokens are kept, as an object or as text: "balanced" (the default), "recall",
            "paper", "ladder:span=15:overlap=0", "streaming", "full", ...; see `lacache.policies`.
            With the first two, the retrieval heads of a model with a head profile
            (`lacache.calibrate`) keep many old tokens; without a profile, "balanced" is a ladder
            over all layers, "recall" guesses which layers matter, and a HeadProfileWarning is
            issued.
        prefill: "chunked" compacts while it prefills, so memory is bounded at all times; "dense"
            prefills the first input with a full cache and then compacts it, as the paper does for
            LongBench and needles.
        kv_dtype: what keys and values are stored in, such as "int8"; None is the model's own type.
            They are decoded for the attention of one layer at a time, and a budget in bytes counts
            what is stored. Sliding-window layers stay in the model's type.

    Raises:
        ConfigError: the budget or the policy cannot work for this model, or there is no such
            kv_dtype.
        UnsupportedModelError: the model's caches or positions are not understood.
    """

    def __init__(
        self,
        model: Any,
        budget: BudgetLike | None = None,
        policy: Policy | str = DEFAULT_POLICY,
        *,
        prefill: Prefill = "chunked",
        kv_dtype: str | None = None,
    ) -> None:
        validate_prefill(prefill)
        super().__init__([], kv_dtype)
        info = model_info(model)
        decoder = find_decoder(model)
        self._decoder = ref(decoder)
        self._info = info
        self._bind = partial(
            bind_policy,
            (valid := parse_policy(policy)),
            validate_budget(valid, budget),
            model_shape(model, valid),
            bytes_per_token=bytes_per_token(info, kv_dtype),
        )
        self._prefill = prefill
        self._base = 0
        self._start(1)
        install_hooks(decoder)
        if len(self._groups) > 1:
            install_mask_hooks(decoder, self.growing_layers)

    def __repr__(self) -> str:
        return f"LaCache({self.policy}, {self.report()})"

    @property
    def policy(self) -> BoundPolicy:
        """Policy and capacity; with a share as budget, as far as it is known yet."""
        return self._bound

    def kept_tokens(self, layer_idx: int, kv_head: int | None = None) -> list[int]:
        """Return the tokens that a layer holds, as indices into the sequence, in slot order.

        Args:
            layer_idx: the layer's index in the model.
            kv_head: required where the KV heads of the layer are in different head groups.

        Raises:
            InputError: there is no such layer or head.
            UnsupportedOperationError: the layer is native (sliding, linear, shared).
        """
        if not 0 <= layer_idx < len(self.layers):
            raise InputError(f"layer_idx={layer_idx} must be in 0 to {len(self.layers) - 1}")
        layer = self.layers[layer_idx]
        if not isinstance(layer, PolicyLayer):
            raise UnsupportedOperationError(
                f"layer {layer_idx} is a native {type(layer).__name__}; try one of "
                f"{self.growing_layers}"
            )
        num_heads = next(g.num_heads for g in self._info.growing if g.index == layer_idx)
        if kv_head is not None and not 0 <= kv_head < num_heads:
            raise InputError(f"kv_head={kv_head} must be in 0 to {num_heads - 1}")
        bounded = layer.of_head(kv_head)
        return list(bounded.kept_tokens())

    def report(self) -> CacheReport:
        """Return the cache's counts of tokens, and its bytes."""
        layers = (*self._bounded_layers(), *self._native_layers())
        num_bytes = sum(layer_bytes(layer) for layer in layers)
        return make_report(
            self._bound.groups,
            [group.kept() for group in self._groups],
            compactions=max(group.num_compactions for group in self._groups),
            num_bytes=num_bytes,
            held_bytes=num_bytes,
        )

    def reset(self) -> None:
        """Remove all tokens; the policy and the budget stay."""
        self._start(1)

    def expect_prompt(self, num_tokens: int) -> None:
        """Bind the policy to the length of the first prompt: the longest chunk of it so far."""
        if self._num_seen == 0 and num_tokens > self._prompt_tokens:
            # An earlier prompt may have been interrupted before any of it counted.
            self._start(num_tokens)

    def next_chunk(self, num_tokens: int) -> int:
        """Return the tokens up to the next compaction of any group, or all in a dense prefill."""
        if self._is_dense():
            return num_tokens
        return min(num_tokens, *(group.room() for group in self._groups))

    def validate_decoder(self, decoder: nn.Module) -> None:
        """Raise ModelError unless the cache was made for this decoder."""
        if decoder is not self._decoder():
            raise ModelError(
                "this cache was made from another model; make one with LaCache(model, ...)"
            )

    def validate_input(self, first_position: int | None, batch_size: int) -> None:
        """Raise InputError unless the input continues the cached sequences."""
        if first_position is not None and first_position != self._num_seen:
            raise InputError(
                f"the input starts at position {first_position}, but the cache has seen "
                f"{self._num_seen} tokens; generate() needs the whole sequence so far and at least "
                "one new token, cache.prefill and lacache.stream need the new tokens alone, and "
                "cache.reset() starts over"
            )
        keys = self._bounded_layers()[0].stored_keys
        held = batch_size if keys is None else keys.num_sequences
        if held != batch_size:
            raise InputError(
                f"the input has {batch_size} sequences, but the cache holds {held}; use "
                "cache.batch_repeat_interleave(n) for n continuations of each sequence, "
                "cache.reset() or another cache"
            )

    def next_positions(self, num_new: int) -> Tensor:
        """Return the position ids [Q] of the next forward."""
        first, _ = self._positions.find(self._base, self._states())
        return torch.arange(first, first + num_new)

    def begin(self, num_new: int) -> None:
        """Open a forward of `num_new` tokens, and compact if a compaction is due.

        Raises:
            InputError: a dense prefill that is too long for the rotary frequencies.
            UnsupportedOperationError: the last forward was interrupted.
        """
        dense = self._is_dense()
        if dense:
            self._info.validate_dense(num_new)
        position, base = self._positions.find(self._base, self._states())
        renumber = base != self._base
        for group in self._groups:
            group.begin(num_new, position, dense=dense, renumber=renumber)
        self._base = base
        if self._info.has_native:
            # Native layers do not report changes, and may change before any other layer.
            for group in self._groups:
                group.touch()

    def commit(self) -> None:
        """Close the forward: count its tokens.

        Raises:
            UnsupportedOperationError: the model did not pass the cache to every layer.
        """
        for group in self._groups:
            group.commit()
        for layer in self._bounded_layers():
            expected = layer.group.state.num_cached
            if layer.num_stored() != expected:
                raise UnsupportedOperationError(
                    f"a layer stored {layer.num_stored()} tokens where {expected} were counted, "
                    "as the model did not pass the cache on (gradient checkpointing does that); "
                    "call model.eval() and cache.reset()"
                )

    def key_lengths(self, layer_idx: int) -> tuple[int, ...] | None:
        """Return the number of keys per KV head, where the groups hold different numbers."""
        layer = self.layers[layer_idx]
        if len(self._groups) == 1 or not isinstance(layer, PolicyLayer):
            return None
        return layer.key_lengths()

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Raise UnsupportedOperationError, as evicted tokens cannot come back."""
        refuse_crop()

    def activate_past_recording(self) -> None:
        """Raise UnsupportedOperationError, as recording precedes a crop."""
        refuse_crop()

    @property
    def growing_layers(self) -> list[int]:
        """Indices of the layers under the policy; the others are native."""
        return [layer.index for layer in self._info.growing]

    @property
    def _num_seen(self) -> int:
        return self._groups[0].state.num_seen

    def _start(self, prompt_tokens: int) -> None:
        """Make empty layers for a first prompt of `prompt_tokens` tokens.

        Raises:
            ConfigError: a share of so many tokens cannot work for this model.
        """
        policy = self._bind(prompt_tokens=prompt_tokens)
        self._positions = self._info.query_positions([bound.schedule for bound in policy.groups])
        self._bound = policy
        self._prompt_tokens = prompt_tokens
        self._base = 0
        self._groups: list[LayerGroup] = []
        layers: list[Any] = DynamicCache(config=self._info.text_config).layers
        bounded: dict[int, dict[tuple[int, ...], BoundedLayer]] = {}
        for bound in policy.groups:
            group = LayerGroup(bound.schedule)
            self._groups.append(group)
            for depth, heads in bound.heads.items():
                layer = self._info.growing[depth]
                pattern = group.patterns.index(bound.pattern(depth))
                center = layer.key_center
                of_heads = BoundedLayer(
                    group,
                    pattern,
                    layer.rotation,
                    self.kv_dtype,
                    None if center is None else center[list(heads)],
                )
                bounded.setdefault(layer.index, {})[heads] = of_heads
        for index, by_heads in bounded.items():
            whole = len(by_heads) == 1
            layers[index] = next(iter(by_heads.values())) if whole else SplitLayer(by_heads)
        self.layers = layers

    def _states(self) -> list[State]:
        return [group.state for group in self._groups]

    def _is_dense(self) -> bool:
        return self._prefill == "dense" and self._num_seen == 0

    def _bounded_layers(self) -> list[BoundedLayer]:
        return [
            bounded
            for layer in self.layers
            if isinstance(layer, PolicyLayer)
            for bounded in layer.by_group
        ]

    def _native_layers(self) -> list[CacheLayerMixin]:
        return [
            layer
            for layer in self.layers
            if isinstance(layer, CacheLayerMixin) and not isinstance(layer, PolicyLayer)
        ]

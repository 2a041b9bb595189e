"""The layers, shapes and rotary embeddings of a model, found by probing the model itself.

Two tokens are run at two positions far apart. If only differences of positions matter, the keys of
every layer differ by a rotation (or, in a layer without positions, not at all) and the output is
the same. A model that does not pass is refused, so a misread rotary embedding cannot cause wrong
answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lacache.errors import ConfigError, InputError, UnsupportedModelError
from lacache.models.decoder import cache_argument, find_decoder, input_device
from lacache.models.key_centers import find_key_center, record_projections
from lacache.models.rotary import Rotation, find_rotations, fixed_length
from lacache.policies.query_positions import UNKNOWN_LENGTH, QueryPositions
from lacache.policies.schedule import UNBOUNDED, Schedule

FAR = 20_011
"""A position so large that every known rescaling of queries by position shows."""

_NATIVE_LAYERS = (
    "DummyLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionLayer",
)
"""Layers of bounded size; by name, as not every version of transformers has all of them."""


@final
@dataclass(frozen=True)
class GrowingLayer:
    """A layer whose cache grows with every token."""

    index: int
    rotation: Rotation | None
    num_heads: int
    """KV heads."""
    key_size: int
    """D of a key of one head."""
    value_size: int
    bytes_per_token: int
    has_sinks: bool = False
    """Whether its attention has learned sinks, one number for each query head (gpt-oss)."""
    key_center: Tensor | None = field(default=None, compare=False, repr=False)
    """What its keys have in common, float32 [H, D]; see `find_key_center`."""


@final
@dataclass(frozen=True)
class SlidingLayer:
    """A layer with sliding-window attention."""

    index: int
    window: int
    """Number of tokens that a token attends to, itself included."""
    num_heads: int
    key_size: int
    value_size: int


@final
@dataclass(frozen=True)
class ModelInfo:
    """The layers under a policy, in order of depth, and the others, which stay native."""

    growing: tuple[GrowingLayer, ...]
    has_native: bool
    text_config: Any
    sliding: tuple[SlidingLayer, ...]
    linear: tuple[int, ...]
    """Indices of layers with a recurrent state instead of keys and values, or with both."""
    dtype: torch.dtype
    """Type of keys and values."""
    fixed_length: int | None = None
    """Positions within which rotary frequencies stay as they are; None for all."""

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Number of KV heads of each growing layer."""
        return tuple(layer.num_heads for layer in self.growing)

    @property
    def shares_kv(self) -> bool:
        """Whether layers without keys and values of their own may attend to another layer's."""
        num_layers: int = self.text_config.num_hidden_layers
        return len(self.growing) + len(self.sliding) + len(self.linear) < num_layers

    @property
    def trained_length(self) -> int:
        """Positions that the model was trained on, or within which its frequencies stay."""
        return _trained_length(self.text_config, self.fixed_length)

    def query_positions(self, schedules: Sequence[Schedule]) -> QueryPositions:
        """Return where the tokens of a cache stand, with a schedule for each head group.

        Raises:
            ConfigError: a capacity beyond the length at which rotary frequencies change.
            UnsupportedModelError: positions can never start over, and would pass that length.
        """
        self.validate_capacity(max(schedule.capacity for schedule in schedules))
        # Native sliding layers keep rotated keys.
        return QueryPositions(tuple(schedules), self.trained_length, count_on=self.has_native)

    def validate_dense(self, num_tokens: int) -> None:
        """Raise InputError for a dense prefill that is too long for the rotary frequencies."""
        if self.fixed_length is not None and num_tokens > self.fixed_length:
            raise InputError(
                f"a dense prefill of {num_tokens} tokens must be at most {self.fixed_length}, the "
                "positions after which the model's rotary frequencies change; try "
                "prefill='chunked'"
            )

    def validate_capacity(self, capacity: int) -> None:
        """Refuse a capacity, in tokens, that is beyond what the rotary frequencies allow.

        Raises:
            ConfigError: the frequencies would change.
            UnsupportedModelError: positions can never start over, so they would in the end.
        """
        if self.fixed_length is None:
            return
        if self.has_native:
            raise UnsupportedModelError(
                f"the model's rotary frequencies change after {self.fixed_length} positions, which "
                "its sliding or linear layers count without end; set another rope_type in its "
                "config"
            )
        if capacity > self.fixed_length:
            is_full = capacity == UNBOUNDED
            many, remedy = ("endless", "policy='streaming' and ") if is_full else (capacity, "")
            raise ConfigError(
                f"capacity={many} must be at most {self.fixed_length}, the positions after which "
                f"the model's rotary frequencies change; try {remedy}budget="
                f"{self.fixed_length // 2}"
            )

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values of one token of one sequence, over all growing layers."""
        return sum(layer.bytes_per_token for layer in self.growing)


_known: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], ModelInfo]] = WeakKeyDictionary()


def model_info(model: Any) -> ModelInfo:
    """Return the layers, shapes and rotary embeddings of a causal language model, probed once.

    Raises:
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    decoder = find_decoder(model)
    weight = next(decoder.parameters())
    key = (weight.dtype, weight.device)
    if decoder in _known and _known[decoder][0] == key:
        return _known[decoder][1]
    info = _probe(model, decoder)
    _known[decoder] = (key, info)
    return info


def _probe(model: Any, decoder: nn.Module) -> ModelInfo:
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    _refuse_scaled_queries(name, config)
    try:
        empty = DynamicCache(config=config)
    except (KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"transformers has no default cache for {name} ({type(error).__name__}: {error}); use "
            "a model with attention layers"
        ) from error
    types = getattr(config, "layer_types", None) or ["full_attention"] * len(empty.layers)
    for layer in empty.layers:
        kind = type(layer).__name__
        if type(layer) is not DynamicLayer and kind not in _NATIVE_LAYERS:
            raise UnsupportedModelError(
                f"{name} has layers of kind {kind}, whose cache is more than keys and values; use "
                "a model with plain attention layers"
            )
    growing = [i for i, layer in enumerate(empty.layers) if type(layer) is DynamicLayer]
    if not growing:
        raise UnsupportedModelError(
            f"{name} has no attention layer whose cache grows (all are sliding or linear), so its "
            "memory is bounded already; use it without this cache"
        )
    rotations = find_rotations(decoder, [types[i] for i in growing])
    fixed = fixed_length(decoder.config)
    far = FAR if fixed is None else min(FAR, fixed - 2)
    with record_projections(decoder) as projections:
        near_cache, near_hidden = _run(name, decoder, config, 0)
    far_cache, far_hidden = _run(name, decoder, config, far)
    layers = tuple(
        _layer_info(i, rotations[types[i]], near_cache.layers[i], far_cache.layers[i], far)
        for i in growing
    )
    with_sinks = _layers_with_sinks(decoder)
    keys_of: dict[int, Any] = {i: vars(near_cache.layers[i])["keys"] for i in growing}
    length = _trained_length(config, fixed)
    layers = tuple(
        replace(
            layer,
            has_sinks=layer.index in with_sinks,
            key_center=find_key_center(
                projections.get(layer.index), layer.rotation, keys_of[layer.index], length
            ),
        )
        for layer in layers
    )
    change = _distance(near_hidden, far_hidden)
    # Not in half precision: in a sound model of 30 layers, moving by one position already changes
    # the output by 0.07.
    if _is_precise(near_hidden) and change > 5e-3:
        raise UnsupportedModelError(
            f"the output of {name} changes with absolute positions (relative error {change:.2g}), "
            "so moving keys would change its answers; use a model in which only distances matter"
        )
    linear = tuple(
        i for i, layer in enumerate(empty.layers) if "LinearAttention" in type(layer).__name__
    )
    if linear:
        _validate_chunks(name, decoder, config)
    sliding = tuple(
        _sliding_info(i, layer)
        for i, layer in enumerate(near_cache.layers)
        if type(layer) is DynamicSlidingWindowLayer and layer.keys is not None
    )
    has_native = len(growing) < len(empty.layers)
    first: Any = near_cache.layers[growing[0]]
    dtype: torch.dtype = first.keys.dtype
    return ModelInfo(layers, has_native, config, sliding, linear, dtype, fixed)


def _refuse_scaled_queries(name: str, config: Any) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    if getattr(config, "attn_temperature_tuning", False) or "llama_4_scaling_beta" in parameters:
        raise UnsupportedModelError(
            f"{name} scales its queries by absolute position, so moving keys would change its "
            "answers; use a model in which only distances matter"
        )


def _validate_chunks(name: str, decoder: nn.Module, config: Any) -> None:
    """Refuse linear layers that lose their state when several tokens follow.

    Some versions of transformers have this bug, which a prompt in one chunk never shows.
    """
    _, whole = _run(name, decoder, config, 0, chunks=(3,))
    _, joined = _run(name, decoder, config, 0, chunks=(1, 2))
    error = _distance(joined, whole)
    if error > (5e-3 if _is_precise(whole) else 0.2):
        raise UnsupportedModelError(
            f"{name} gives other logits when a prompt is prefilled in chunks (relative error "
            f"{error:.2g}), as this version of transformers does not carry the state of its "
            "linear layers on; try a newer transformers"
        )


@torch.no_grad()
def _run(
    name: str, decoder: nn.Module, config: Any, first: int, chunks: tuple[int, ...] = (2,)
) -> tuple[DynamicCache, Tensor]:
    """Run a few tokens from position `first` on, in chunks; return cache and [1, Q, hidden]."""
    cache = DynamicCache(config=config)
    device = input_device(decoder)
    tokens = torch.arange(1, sum(chunks) + 1, device=device)[None] % config.vocab_size
    positions = torch.arange(first, first + sum(chunks), device=device)[None]
    modes = {module: module.training for module in decoder.modules()}
    decoder.eval()
    hidden = []
    try:
        for ids, position_ids in _cut(tokens, positions, chunks):
            output = decoder(
                input_ids=ids,
                position_ids=position_ids,
                **cache_argument(decoder, cache),
                use_cache=True,
            )
            hidden.append(output.last_hidden_state)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{name} could not run a few tokens at position {first} ({type(error).__name__}: "
            f"{error}); use a model that runs on plain token ids and positions"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return cache, torch.cat(hidden, dim=1)


def _cut(
    tokens: Tensor, positions: Tensor, chunks: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0
    for length in chunks:
        yield tokens[:, start : start + length], positions[:, start : start + length]
        start += length


def _layer_info(
    index: int, rotations: tuple[Rotation, ...], near: Any, far: Any, distance: int
) -> GrowingLayer:
    if near.keys is None:
        raise UnsupportedModelError(
            f"layer {index} never filled its cache, so what it attends to is unknown; "
            "use a model whose attention layers keep their own keys and values"
        )
    # The first token sees only itself, so all but its rotation is the same at both positions.
    near_keys, far_keys = near.keys[:, :, :1], far.keys[:, :, :1]
    candidates: list[tuple[float, Rotation | None]] = [(_distance(near_keys, far_keys), None)]
    candidates += [
        (_rotated_distance(each, near_keys, far_keys, distance), each) for each in rotations
    ]
    error, rotation = min(candidates, key=lambda pair: pair[0])
    error = max(error, _distance(near.values[:, :, :1], far.values[:, :, :1]))
    if error > (5e-3 if _is_precise(near_keys) else 5e-2):
        raise UnsupportedModelError(
            f"keys or values of layer {index} do not follow the model's rotary embedding "
            f"(relative error {error:.2g}), as with latent attention (MLA) or learned positions; "
            "use a model with plain rotary attention"
        )
    width = sum(t.shape[1] * t.shape[-1] * t.element_size() for t in (near.keys, near.values))
    return GrowingLayer(
        index, rotation, near.keys.shape[1], near.keys.shape[-1], near.values.shape[-1], width
    )


def _layers_with_sinks(decoder: nn.Module) -> set[int]:
    """Return the layers with learned sinks, by the name that transformers gives them."""
    names = (name.split(".") for name, _ in decoder.named_parameters())
    return {int(name[1]) for name in names if name[0] == "layers" and name[-1] == "sinks"}


def _sliding_info(index: int, layer: Any) -> SlidingLayer:
    keys, values = layer.keys, layer.values
    return SlidingLayer(
        index, layer.sliding_window, keys.shape[1], keys.shape[-1], values.shape[-1]
    )


def _rotated_distance(rotation: Rotation, near: Tensor, far: Tensor, distance: int) -> float:
    shifts = torch.full((near.shape[-2],), distance, device=near.device)
    try:
        return _distance(rotation.rotate(near.float(), rotation.tables(shifts)), far)
    except (RuntimeError, TypeError, ValueError, IndexError):  # made for other shapes
        return float("inf")


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.float(), b.float()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def _is_precise(states: Tensor) -> bool:
    return torch.finfo(states.dtype).bits >= 32


def _trained_length(text_config: Any, fixed_length: int | None) -> int:
    configured = getattr(text_config, "max_position_embeddings", None)
    return fixed_length or configured or UNKNOWN_LENGTH

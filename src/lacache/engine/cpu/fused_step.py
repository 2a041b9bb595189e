"""A decode step in one call of a kernel, in place of the model's modules (docs/adr/0030).

The kernel computes decoder blocks like Llama's. Whether a model computes the same with its modules
shows in numbers: a few tokens are run both ways in float32. The kernel is used if the logits agree.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import Cache

from lacache.cache.codecs import PlainCodec
from lacache.cache.static.attention import AttendingLayer, fused
from lacache.cache.static.static_cache import StaticKVCache
from lacache.engine.cpu.decoder_modules import (
    DecoderModules,
    Embedding,
    Linear,
    UnknownModuleError,
    read_decoder,
)
from lacache.engine.int8 import Int8Linear
from lacache.errors import UnsupportedOperationError
from lacache.models.decoder import cache_argument
from lacache.models.packed.layers import PackedModule, is_packed
from lacache.models.packed.weight import TENSORS

MOST_BATCH_SLOTS = 8
"""With more, torch's products are faster: they read the weights once for all. Not so packed
weights, which a core unpacks into its cache."""

_PROBES = ((1, 2), (3, 5), (7, 11), (13, 17))
"""Pairs of tokens. Where activations are rounded to 8 bits, one that falls to the other side now
and then changes all that follows; so one pair must agree, not all."""
_STARTS = (0, 100_003)
"""Positions of the first token. Some models scale queries only far from the start."""
# Of types, shapes or arguments that the kernel does not take, or the modules in float32.
_REFUSALS = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)
_TOLERANCE = 1e-3
# Activations are rounded to 8 bits, and the least difference before is one of 1 % after 30 layers.
_TOLERANCE_OF_PACKED = 5e-2


@final
class FusedStep:
    """A decode step by the kernel.

    Args:
        modules: the model's.
        kernel: the model's weights and the cache's slots.
        active: the batch slots that bring a token, bool [B], at a fixed address.
    """

    def __init__(self, modules: DecoderModules, kernel: Any, active: Tensor) -> None:
        self._rotary = modules.rotary
        self._like = torch.empty(0)
        self._kernel = kernel
        self._active = active

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Process a token of each active batch slot.

        Args:
            ids: [B, 1].
            positions: [B, 1].

        Returns:
            Logits [B, V] in float32.
        """
        tables = self._rotary(self._like, position_ids=positions)
        logits: Tensor = self._kernel.step(ids, *tables, self._active)
        return logits


@torch.no_grad()
def find_fused_step(model: Any, cache: StaticKVCache) -> FusedStep | None:
    """Return the kernel's step for a model; None if the kernel does not compute the same.

    Args:
        model: the engine's private model, on CPU. The kernels are loaded.
        cache: the engine's.
    """
    slots = list(cache.decode_slots().values())
    plain = [isinstance(each.keys.codec, PlainCodec) for each in slots]
    fits = len(cache.sequences) <= MOST_BATCH_SLOTS or is_packed(model)
    if not fits or not all(plain):
        return None
    without_positions = {each.index for each in cache.layout.info.growing if not each.rotation}
    try:
        modules = read_decoder(model)
        run_modules = functools.cache(functools.partial(_run_modules, model, modules))
        _, layers = run_modules(_PROBES[0], _STARTS[0])
        kernel = _new_kernel(modules, [layer.scaling for layer in layers], without_positions)
        most = _TOLERANCE_OF_PACKED if is_packed(model) else _TOLERANCE
        for start in _STARTS:
            errors = (
                _error(modules, kernel, run_modules(tokens, start), tokens, start)
                for tokens in _PROBES
            )
            if not any(error < most for error in errors):
                return None
        kernel.set_slots(
            [each.keys.storage.flat[0] for each in slots],
            [each.values.storage.flat[0] for each in slots],
            [each.first for each in slots],
            [each.new for each in slots],
            [each.last for each in slots],
        )
    except (UnknownModuleError, UnsupportedOperationError, *_REFUSALS):
        return None
    return FusedStep(modules, kernel, cache.active)


def _error(
    modules: DecoderModules,
    kernel: Any,
    by_modules: tuple[Tensor, list["_ProbeLayer"]],
    tokens: Sequence[int],
    start: int,
) -> float:
    """Return how far the kernel's logits of the last token are from those of the modules."""
    expected, layers = by_modules
    found = _run_kernel(modules, kernel, layers, tokens, start)
    return float((found - expected).norm() / expected.norm())


@final
class _ProbeLayer(AttendingLayer):
    """A layer that holds all keys and values in float32, and how the model scales queries."""

    def __init__(self) -> None:
        super().__init__(fused)
        self.scaling = 1.0
        self.states: list[tuple[Tensor, Tensor]] = []

    def insert(self, keys: Tensor, values: Tensor) -> None:
        """Add keys and values."""
        self.states.append((keys, values))

    def attend(self, module: nn.Module, query: Tensor, options: dict[str, Any]) -> Tensor:
        """Compute attention over all keys and values."""
        self.scaling = options.get("scaling") or query.shape[-1] ** -0.5
        keys, values = (torch.cat(states, dim=2) for states in zip(*self.states, strict=True))
        return self._attend(module, query, keys, values, None, options)


def _run_modules(
    model: Any, modules: DecoderModules, tokens: Sequence[int], start: int
) -> tuple[Tensor, list[_ProbeLayer]]:
    """Return the last token's logits [V] by the modules, and the layers of their cache."""
    layers = [_ProbeLayer() for _ in modules.blocks]
    cache = cache_argument(model, Cache(layers=list(layers)))
    for position, token in enumerate(tokens, start):
        states = modules.embed(torch.tensor([[token]])).float()
        options = {"position_ids": torch.tensor([[position]]), "use_cache": True, **cache}
        logits = model(inputs_embeds=states, **options).logits[0, -1]
    return logits.float(), layers


def _run_kernel(
    modules: DecoderModules,
    kernel: Any,
    layers: list[_ProbeLayer],
    tokens: Sequence[int],
    start: int,
) -> Tensor:
    """Return the last token's logits [V] by the kernel."""
    slot = torch.zeros(1, 1, dtype=torch.long)
    shapes = [layer.states[0][0].shape for layer in layers]
    stored = [torch.zeros(heads * len(tokens), size) for _, heads, _, size in shapes]
    slots = [slot.expand(1, heads) for _, heads, _, _ in shapes]
    first = [len(tokens) * torch.arange(heads)[None] for _, heads, _, _ in shapes]
    kernel.set_slots(stored, [each.clone() for each in stored], first, slots, slots)
    step = FusedStep(modules, kernel, torch.ones(1, dtype=torch.bool))
    for number, token in enumerate(tokens):
        slot.fill_(number)
        logits = step(torch.tensor([[token]]), torch.tensor([[start + number]]))
    return logits[-1]


def _new_kernel(
    modules: DecoderModules, scalings: list[float], without_positions: Collection[int]
) -> Any:
    """Return a `DecodeStep` of kernels/decode_step.h with the weights of a model.

    Raises:
        UnknownModuleError: its layers are of several kinds.
        RuntimeError: the kernel does not take the types or shapes of the weights.
    """
    kinds = {(block.head_size, block.activation) for block in modules.blocks}
    if len(kinds) != 1:
        raise UnknownModuleError("layers of several kinds")
    [(head_size, activation)] = kinds
    kernel = torch.classes.lacache.DecodeStep(head_size, activation == "gelu")
    for index, (block, scaling) in enumerate(zip(modules.blocks, scalings, strict=True)):
        kernel.add_layer(
            [_add(kernel, linear) for linear in block.linears],
            [norm.weight for norm in block.norms],
            [norm.eps for norm in block.norms],
            index not in without_positions,
            scaling,
        )
    embed, head = _add(kernel, modules.embed), _add(kernel, modules.head)
    kernel.set_ends(embed, modules.norm.weight, modules.norm.eps, head)
    return kernel


def _add(kernel: Any, module: Linear | Embedding) -> int:
    """Add the weights of a module to a kernel, and return their number there."""
    given = dict(module.named_parameters()).get("bias")
    bias = None if given is None else given.detach().float()
    if isinstance(module, PackedModule):
        weight = module.packed
        tensors = (getattr(weight, name) for name in TENSORS)
        number: int = kernel.add_packed(*tensors, weight.zero, weight.out_features, bias)
    elif isinstance(module, Int8Linear):
        scales = module.get_buffer("scale").float()
        number = kernel.add_plain(module.get_buffer("weight"), scales, bias)
    else:
        number = kernel.add_plain(module.weight.detach(), None, bias)
    return number

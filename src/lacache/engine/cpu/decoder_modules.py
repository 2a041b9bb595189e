"""The modules of decoders with blocks like Llama's, found by their names and types."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from lacache.cache.hooks import HOOKS
from lacache.engine.cpu.linear import CpuLinear
from lacache.engine.int8 import Int8Linear
from lacache.models.decoder import find_decoder
from lacache.models.packed.layers import PackedEmbedding, PackedLinear

Linear = CpuLinear | Int8Linear | PackedLinear
Embedding = nn.Embedding | PackedEmbedding

_DECODER = ("embed_tokens", "layers", "norm", "rotary_emb")
_BLOCK = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_OF_HEADS = ("q_norm", "k_norm")
_MLP = ("gate_proj", "up_proj", "down_proj", "act_fn")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": partial(functional.gelu, approximate="tanh"),
}


class UnknownModuleError(Exception):
    """A model is not made of these modules."""


@final
@dataclass(frozen=True)
class RMSNorm:
    """A norm by the root mean square."""

    weight: Tensor
    """[N] in float32."""
    eps: float
    """Added to the mean square."""


@final
@dataclass(frozen=True)
class Block:
    """A layer of a decoder."""

    linears: tuple[Linear, ...]
    """q, k, v, o, gate, up and down."""
    norms: tuple[RMSNorm, ...]
    """Before attention and before the MLP and, where there are any, of queries and of keys."""
    head_size: int
    activation: str
    """Of the gate: "silu", or "gelu" by tanh."""


@final
@dataclass(frozen=True)
class DecoderModules:
    """The modules of a decoder with its head."""

    embed: Embedding
    rotary: nn.Module
    blocks: tuple[Block, ...]
    norm: RMSNorm
    head: Linear


def read_decoder(model: Any) -> DecoderModules:
    """Return the modules of an engine's private model, whatever it computes between them.

    Raises:
        UnknownModuleError: it is made of others.
    """
    for module in model.modules():
        hooks = {*module._forward_hooks.values(), *module._forward_pre_hooks.values()} - HOOKS
        if hooks or "forward" in vars(module):
            raise UnknownModuleError("a module with a hook")
    embed, layers, norm, rotary = _children(find_decoder(model), _DECODER)
    if (
        type(embed) not in (nn.Embedding, PackedEmbedding)
        or vars(embed).get("max_norm") is not None
    ):
        raise UnknownModuleError(type(embed).__name__)
    return DecoderModules(
        embed=cast("Embedding", embed),
        rotary=rotary,
        blocks=tuple(_block(layer) for layer in layers.children()),
        norm=_norm(norm),
        head=_linear(model.get_output_embeddings()),
    )


def _block(layer: nn.Module) -> Block:
    attention, mlp, *norms = _children(layer, _BLOCK)
    *in_mlp, activation = _children(mlp, _MLP)
    has_norms = _OF_HEADS[0] in dict(attention.named_children())
    in_attention = _children(attention, _ATTENTION + (_OF_HEADS if has_norms else ()))
    return Block(
        linears=tuple(map(_linear, [*in_attention[: len(_ATTENTION)], *in_mlp])),
        norms=tuple(map(_norm, [*norms, *in_attention[len(_ATTENTION) :]])),
        head_size=vars(attention).get("head_dim", 0),
        activation=_activation(activation),
    )


def _children(module: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """Return the children of these names; others may have no parameters."""
    children = dict(module.named_children())
    for name, child in children.items():
        if name not in names and next(child.parameters(), None) is not None:
            raise UnknownModuleError(name)
    if missing := set(names) - children.keys():
        raise UnknownModuleError(", ".join(missing))
    return [children[name] for name in names]


def _linear(module: Any) -> Linear:
    if not isinstance(module, Linear):
        raise UnknownModuleError(type(module).__name__)
    return module


def _norm(module: nn.Module) -> RMSNorm:
    eps = vars(module).get("variance_epsilon", vars(module).get("eps"))
    weight = dict(module.named_parameters()).get("weight")
    if not isinstance(eps, float) or weight is None:
        raise UnknownModuleError(type(module).__name__)
    norm = RMSNorm(weight.detach().float(), eps)
    # So small that eps counts.
    states = torch.linspace(-2, 1, len(weight)) * eps**0.5
    scale = torch.rsqrt(states.square().mean() + eps)
    if not torch.allclose(module(states), states * scale * norm.weight, atol=1e-6):
        raise UnknownModuleError(type(module).__name__)
    return norm


def _activation(module: nn.Module) -> str:
    states = torch.linspace(-8, 8, 257)
    for name, activation in _ACTIVATIONS.items():
        if torch.allclose(module(states), activation(states), atol=1e-6):
            return name
    raise UnknownModuleError(type(module).__name__)

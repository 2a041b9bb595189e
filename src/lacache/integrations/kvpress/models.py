"""What the press must know of a model: its layers, and how its keys turn."""

import sys
from typing import Any

import torch
from torch import Tensor

from lacache.errors import InputError, UnsupportedModelError

LENGTH_DEPENDENT = ("dynamic", "longrope")


def validate_layers(config: Any) -> None:
    """Refuse layers that are windows by themselves.

    kvpress has one length for all layers when it makes the mask of several tokens, and after a
    press on some of them alone it does not fit the others.

    Args:
        config: of the decoder.

    Raises:
        UnsupportedModelError: not all layers are full attention.
    """
    types = getattr(config, "layer_types", None)
    if types is None:
        is_window = getattr(config, "sliding_window", None) is not None
        types = ["sliding_attention" if is_window else "full_attention"]
    others = sorted(set(types) - {"full_attention"})
    if others:
        raise UnsupportedModelError(
            f"the model has layers of type {', '.join(others)}, and this press needs full "
            "attention in all of them; try lacache.LaCache with transformers itself"
        )


def validate_rotary(model: Any, supported: tuple[type, ...]) -> None:
    """Refuse models whose keys may turn in another way than `turned` does.

    Args:
        model: of transformers.
        supported: the classes that kvpress tests.

    Raises:
        UnsupportedModelError: another model, or frequencies that change with the length.
    """
    if not issubclass(type(model), supported):
        names = ", ".join(one.__name__ for one in supported)
        raise UnsupportedModelError(
            f"{type(model).__name__} is none of the models that kvpress supports ({names}), so "
            "how its keys turn is unknown; try rerotate=False"
        )
    rope_type = model.model.rotary_emb.rope_type
    if rope_type in LENGTH_DEPENDENT:
        raise UnsupportedModelError(
            f"rope_type={rope_type!r} changes its frequencies with the length of the text, so "
            "turned keys would no longer fit; try rerotate=False"
        )


def refuse_padding(mask: Tensor | None) -> None:
    """Refuse a batch of texts of different lengths, as its padding would be kept as sinks.

    Args:
        mask: of a layer's attention: none, [B, N], or [B, 1, N, N]; boolean, or of the numbers
            that are added to scores.

    Raises:
        InputError: the last token does not attend to all others.
    """
    if mask is None:
        return
    is_added = mask.ndim == 4 and mask.dtype != torch.bool
    seen = mask[:, :, -1] if mask.ndim == 4 else mask
    if not bool((seen >= 0 if is_added else seen > 0).all()):
        raise InputError(
            "the batch has padding, which would be kept in place of text; press texts of equal "
            "length together, or one at a time"
        )


def turned(attention: Any, keys: Tensor, shifts: Tensor) -> Tensor:
    """Keys moved to other positions, with the model's own tables and function.

    Args:
        attention: the layer's, to which kvpress gives the model's `rotary_emb`.
        keys: [B, Hkv, K, D].
        shifts: [K], in positions.

    Returns:
        Keys [B, Hkv, K, D], rounded once to their own type.
    """
    rotary = attention.rotary_emb
    probe = torch.empty(0, dtype=torch.float32, device=keys.device)
    origin, _ = rotary(probe, shifts.new_zeros(1, 1))
    cos, sin = rotary(probe, shifts[None])
    turn = vars(sys.modules[type(attention).__module__])["apply_rotary_pos_emb"]
    wide = keys.float()
    # Queries of no heads cost nothing. At position 0 the cosine is the scaling of the model's
    # attention, which keys have already.
    moved: Tensor = turn(wide[:, :0], wide, cos / origin, sin / origin)[1]
    return moved.to(keys.dtype)

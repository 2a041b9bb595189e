"""Rotate keys to other positions with the model's own rotary embedding (docs/adr/0002).

A key that moves is stored as the model gave it, rotated to its original position ("unrotated" from
here on). Attention reads it rotated once, by the distance from there. So there is one rounding,
however often the cache was compacted. Keys that keep their original positions are read bit for bit;
only a compaction that renumbers rotates them in place (docs/adr/0022).
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.errors import UnsupportedModelError

RotaryTables = tuple[Tensor, Tensor]
"""cos and sin, each [1, N, d] in float32, with the model's attention scaling taken out."""

_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary types whose frequencies change where a position is beyond the original length."""


@final
class Rotation:
    """A rotary embedding of a model; hybrid models have one for each type of layer.

    With `leading`, only the leading dimensions of a key are rotated, as many as the tables are
    wide. Models do this either inside their rotary function or around it.
    """

    def __init__(self, rotary: nn.Module, layer_type: str | None, *, leading: bool) -> None:
        self._rotary = rotary
        self._arguments = {} if layer_type is None else {"layer_type": layer_type}
        self._apply = _apply_function(rotary)
        self._leading = leading

    def tables(self, shifts: Tensor, *, scaled: bool = False) -> RotaryTables:
        """Return the tables that move keys by `shifts` [N] positions, which may be negative.

        Args:
            shifts: int64 [N].
            scaled: keep the model's attention scaling, for states that do not include it yet.
        """
        probe = torch.empty(0, dtype=torch.float32, device=shifts.device)
        positions = torch.cat([shifts.new_zeros(1), shifts])[None]
        cos, sin = self._rotary(probe, position_ids=positions, **self._arguments)
        if scaled:
            return cos[:, 1:], sin[:, 1:]
        # At position 0 the cosine is the attention scaling, which stored keys already include.
        scaling = cos[:, :1]
        return cos[:, 1:] / scaling, sin[:, 1:] / scaling

    def rotate(self, keys: Tensor, tables: RotaryTables) -> Tensor:
        """Return keys [B, H, N, D] moved by the shifts of `tables`, rounded once to their type."""
        wide = keys.float()
        if self._leading:
            width = tables[0].shape[-1]
            rotated = self._apply(wide[..., :width], *tables)
            wide = torch.cat([rotated, wide[..., width:]], dim=-1)
        else:
            wide = self._apply(wide, *tables)
        return wide.to(keys.dtype)


def find_rotations(decoder: nn.Module, layer_types: list[str]) -> dict[str, tuple[Rotation, ...]]:
    """Return, for each type of layer, the rotations that its keys may have undergone.

    Raises:
        UnsupportedModelError: no rotary embedding.
    """
    rotary = dict(decoder.named_children()).get("rotary_emb")
    if rotary is None:
        raise UnsupportedModelError(
            f"{type(decoder).__name__} has no rotary embedding, and keys that move need one; use "
            "a rotary model"
        )
    if "layer_type" in inspect.signature(type(rotary).forward).parameters:
        return {name: _candidates(rotary, name) for name in set(layer_types)}
    return dict.fromkeys(layer_types, _candidates(rotary, None))


def _candidates(rotary: nn.Module, layer_type: str | None) -> tuple[Rotation, ...]:
    return tuple(Rotation(rotary, layer_type, leading=leading) for leading in (False, True))


def fixed_length(config: Any) -> int | None:
    """Return the positions within which rotary frequencies stay as they are; None for all.

    Args:
        config: of the decoder; types of layers may have rotary parameters of their own.
    """
    lengths = [
        parameters.get("original_max_position_embeddings") or config.max_position_embeddings
        for parameters in _rope_parameters(getattr(config, "rope_parameters", None))
        if parameters["rope_type"] in _LENGTH_DEPENDENT
    ]
    return min(lengths, default=None)


def _rope_parameters(parameters: Any) -> list[dict[str, Any]]:
    """Return all rotary parameters of a config, which nests them where types of layers differ."""
    if not isinstance(parameters, dict):
        return []
    own = [parameters] if "rope_type" in parameters else []
    return own + [nested for value in parameters.values() for nested in _rope_parameters(value)]


def _apply_function(rotary: nn.Module) -> Callable[..., Tensor]:
    """Return the model's own rotary function, as a function of (states, cos, sin)."""
    module = sys.modules[type(rotary).__module__]
    apply: Callable[..., Any] | None = vars(module).get("apply_rotary_pos_emb")
    if apply is None:
        raise UnsupportedModelError(
            f"{module.__name__} has no apply_rotary_pos_emb, so its way of rotating is unknown; "
            "use a model with the usual rotary function"
        )
    if "k" not in inspect.signature(apply).parameters:
        return apply
    pair = apply
    # The function rotates a pair; queries with no heads cost nothing.
    return lambda states, cos, sin: pair(states[:, :0], states, cos, sin)[1]

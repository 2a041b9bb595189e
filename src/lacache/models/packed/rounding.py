"""Round a matrix to integers in groups, for models whose files have none."""

import torch
from torch import Tensor

from lacache.models.packed.weight import Groups

_GROUP = 32


def to_int4(weight: Tensor) -> Groups | None:
    """Round a matrix [O, I] to 4 bits with a scale and an offset for each 32 columns.

    Returns:
        None where I is no multiple of 32.
    """
    groups = _in_groups(weight)
    if groups is None:
        return None
    low, high = groups.amin(-1), groups.amax(-1)
    scales, offsets = ((high - low) / 15).half(), low.half()
    quants = ((groups - offsets.float()[..., None]) / _steps(scales)).round().clamp(0, 15)
    return Groups(quants.to(torch.uint8).flatten(1), 4, 0, scales, offsets=offsets)


def to_int8(weight: Tensor) -> Groups | None:
    """Round a matrix [O, I] to 8 bits with a scale for each 32 columns.

    Returns:
        None where I is no multiple of 32.
    """
    groups = _in_groups(weight)
    if groups is None:
        return None
    scales = (groups.abs().amax(-1) / 127).half()
    quants = (groups / _steps(scales)).round().clamp(-127, 127) + 128
    return Groups(quants.to(torch.uint8).flatten(1), 8, 128, scales)


def _in_groups(weight: Tensor) -> Tensor | None:
    """Split a matrix [O, I] into groups [O, N, 32] in float32, if I is a multiple of 32."""
    if weight.shape[1] % _GROUP:
        return None
    return torch.unflatten(weight.float(), -1, (-1, _GROUP))


def _steps(scales: Tensor) -> Tensor:
    """Return what to divide groups by [O, N, 1]: the scales as they are stored, 1 in place of 0."""
    return torch.where(scales > 0, scales.float(), 1.0)[..., None]

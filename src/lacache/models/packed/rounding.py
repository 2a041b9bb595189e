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
    if weight.shape[1] % _GROUP:
        return None
    groups = torch.unflatten(weight.float(), -1, (-1, _GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales, offsets = ((high - low) / 15).half(), low.half()
    # With the scales as they are stored.
    steps = torch.where(scales > 0, scales.float(), 1.0)[..., None]
    quants = ((groups - offsets.float()[..., None]) / steps).round().clamp(0, 15)
    return Groups(quants.to(torch.uint8).flatten(1), 4, 0, scales, offsets=offsets)


def to_int8(weight: Tensor) -> Groups | None:
    """Round a matrix [O, I] to 8 bits with a scale for each 32 columns.

    Returns:
        None where I is no multiple of 32.
    """
    if weight.shape[1] % _GROUP:
        return None
    groups = torch.unflatten(weight.float(), -1, (-1, _GROUP))
    scales = (groups.abs().amax(-1) / 127).half()
    steps = torch.where(scales > 0, scales.float(), 1.0)[..., None]
    quants = (groups / steps).round().clamp(-127, 127) + 128
    return Groups(quants.to(torch.uint8).flatten(1), 8, 128, scales)

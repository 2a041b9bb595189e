"""What all keys of a head have in common: the bias of the key projection (docs/adr/0023)."""

import torch
from torch import Tensor, nn

from lacache.models.rotary import Rotation


@torch.no_grad()
def find_key_center(
    decoder: nn.Module, layer: int, rotation: Rotation | None, keys: Tensor, length: int
) -> Tensor | None:
    """Return the mean of a layer's key bias over positions, float32 [H, D].

    The bias is part of every key, rotated to its position. The mean keeps what rotates slowly, and
    loses what rotates fast.

    Args:
        decoder: the model without its head.
        layer: index of the layer.
        rotation: its rotary embedding; None in a layer without positions.
        keys: of some tokens at position 0, [1, H, N, D].
        length: positions that the mean is over; rounded down to a power of two.

    Returns:
        None if there is no bias, or if keys are not nearer to it than to 0, as where they are
        normalised afterwards.
    """
    bias = dict(decoder.named_parameters()).get(f"layers.{layer}.self_attn.k_proj.bias")
    if bias is None or bias.numel() != keys.shape[1] * keys.shape[-1]:
        return None
    center = bias.float().view(1, keys.shape[1], 1, keys.shape[-1])
    if rotation is not None:
        center = rotation.rotate(center, rotation.tables(_one(0, keys), scaled=True))
    if (keys.float() - center).norm() >= keys.float().norm():
        return None
    if rotation is not None:
        # Rotating is linear, and rotations add up, so each step doubles the positions.
        for power in range(length.bit_length() - 1):
            moved = rotation.rotate(center, rotation.tables(_one(2**power, keys)))
            center = (center + moved) / 2
    return center[0, :, 0]


def _one(shift: int, keys: Tensor) -> Tensor:
    return torch.tensor([shift], device=keys.device)

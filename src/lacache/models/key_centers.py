"""Key centers: the bias of the key projection, which all keys of a head share (docs/adr/0023)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lacache.models.rotary import Rotation

Projections = dict[int, tuple[Tensor, Tensor]]
"""By layer, bias [H * D] and output [1, N, H * D] of the key projection, for some tokens."""


@contextmanager
def record_projections(decoder: nn.Module) -> Iterator[Projections]:
    """Record what the key projections with a bias give in a forward, by transformers' names."""
    recorded: Projections = {}

    def record(layer: int, module: nn.Module, _: Any, output: Tensor) -> None:
        bias: Any = module.bias
        recorded[layer] = (bias.detach(), output.detach())

    handles = []
    for name, module in decoder.named_modules():
        parts = name.split(".")
        is_key = parts[0] == "layers" and parts[2:] == ["self_attn", "k_proj"]
        if is_key and getattr(module, "bias", None) is not None:
            handles.append(module.register_forward_hook(partial(record, int(parts[1]))))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def find_key_center(
    projected: tuple[Tensor, Tensor] | None, rotation: Rotation | None, keys: Tensor, length: int
) -> Tensor | None:
    """Return the mean of a layer's key bias over positions, float32 [H, D].

    The bias is part of every key, rotated to its position. The mean keeps what rotates slowly, and
    loses what rotates fast.

    Args:
        projected: the layer's entry of `Projections`; None of a layer without one.
        rotation: its rotary embedding; None in a layer without positions.
        keys: of the recorded tokens from position 0 on, [1, H, N, D].
        length: positions that the mean is over; rounded down to a power of two.

    Returns:
        None if there is no bias, or if more than a rotation makes the keys, such as a norm.
    """
    if projected is None:
        return None
    bias, output = projected
    if output.numel() != keys.numel():
        return None
    num_heads, num_tokens, size = keys.shape[1:]
    center = bias.float().view(1, num_heads, 1, size)
    expected = output.float().view(1, num_tokens, num_heads, size).transpose(1, 2)
    if rotation is not None:
        positions = torch.arange(num_tokens, device=keys.device)
        expected = rotation.rotate(expected, rotation.tables(positions, scaled=True))
        center = rotation.rotate(center, rotation.tables(positions[:1], scaled=True))
    if (expected - keys.float()).norm() > 0.05 * keys.float().norm():
        return None
    if rotation is not None:
        # Rotating is linear, and rotations add up, so each step doubles the positions.
        for power in range(length.bit_length() - 1):
            shift = torch.tensor([2**power], device=keys.device)
            center = (center + rotation.rotate(center, rotation.tables(shift))) / 2
    return center[0, :, 0]

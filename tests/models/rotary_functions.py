"""The rotary functions of models, with random tables."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lacache.models.rotary import Rotation

SIZE = 8
MODULES = (
    "cohere",
    "ernie4_5",
    "gemma3",
    "glm",
    "gpt_neox",
    "gpt_oss",
    "helium",
    "llama",
    "nemotron",
    "olmo",
    "olmo2",
    "phi3",
)
"""Models whose functions differ, some in turning neighbours or only leading dimensions."""


def model_module(name: str) -> Any:
    return import_module(f"transformers.models.{name}.modeling_{name}")


def random_rotation(name: str) -> Rotation:
    """Of keys of `SIZE` numbers, with a model's function."""
    # gpt-oss has tables of half the width.
    width = SIZE // 2 if name == "gpt_oss" else SIZE

    class Tables(nn.Module):
        """In place of the model's own: its cosines and sines are random."""

        def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            angles = position_ids[..., None] * torch.linspace(0.1, 1.0, width)
            return angles.cos(), angles.sin()

    Tables.__module__ = model_module(name).__name__
    return Rotation(Tables(), None, leading=False)

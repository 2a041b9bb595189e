"""The decoder of a transformers model, and the name of its cache argument."""

from collections.abc import Mapping
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import nn

from lacache.errors import UnsupportedModelError

# transformers renamed the argument in 5.24.
_NEW, _OLD = "cache", "past_key_values"


def find_decoder(model: Any) -> nn.Module:
    """Return the stack of decoder layers that every call of the model goes through.

    Raises:
        UnsupportedModelError: `model` is not a decoder-only model of transformers.
    """
    if not isinstance(model, nn.Module) or not callable(getattr(model, "get_decoder", None)):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers model; load one with "
            "AutoModelForCausalLM.from_pretrained"
        )
    config: Any = model.config
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model; only decoder-only models are "
            "supported"
        )
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    return decoder


def input_device(model: Any) -> torch.device:
    """Return the device of the tokens that a model or decoder is given."""
    embedding = model.get_input_embeddings()
    # Packed embeddings have buffers only.
    first: torch.Tensor = next(chain(embedding.parameters(), embedding.buffers()))
    return first.device


def cache_name(model: Any) -> str:
    """Return the name of the cache argument of a model's or decoder's `forward`."""
    return _NEW if _NEW in signature(model.forward).parameters else _OLD


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """Return the cache as the keyword argument of a call of the model."""
    return {cache_name(model): cache}


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a call, under either name, or None."""
    cache = arguments.get(_NEW)
    return arguments.get(_OLD) if cache is None else cache

"""Load a model: the embedded default, a local directory, a GGUF file or a hub name."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lacache.models.name import (
    DEFAULT_MODEL,
    EmbeddedModel,
    is_converted,
    model_name,
    validate_packing,
)

if TYPE_CHECKING:
    from lacache.models.load import LoadedModel, load_model, model_folder

# Loaded on first use, so that a name can be checked without torch.
_HOME = "lacache.models.load"
_OF_HOME = ("LoadedModel", "load_model", "model_folder")

__all__ = [
    "DEFAULT_MODEL",
    "EmbeddedModel",
    "LoadedModel",
    "is_converted",
    "load_model",
    "model_folder",
    "model_name",
    "validate_packing",
]


def __getattr__(name: str) -> Any:
    if name in _OF_HOME:
        return getattr(import_module(_HOME), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Load a model: the embedded default, a local directory, a GGUF file or a hub name."""

from lacache.models.embedded import DEFAULT_MODEL, EmbeddedModel
from lacache.models.load import LoadedModel, load_model, model_folder, model_name

__all__ = [
    "DEFAULT_MODEL",
    "EmbeddedModel",
    "LoadedModel",
    "load_model",
    "model_folder",
    "model_name",
]

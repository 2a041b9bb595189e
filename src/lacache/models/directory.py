"""Look at a model before it is loaded: what is wrong is told from a few small reads."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lacache.errors import ModelError
from lacache.models.errors import first_line
from lacache.models.name import read_object

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Older checkpoints; transformers reads them, without running code from them.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer*", "vocab.*", "*.model", "tekken.json")
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def validate_files(path: Path) -> None:
    """Refuse a model directory whose tokenizer or weights are missing or cut short.

    Raises:
        ModelError: As said.
    """
    # Without any of its files, some versions of the library make an empty tokenizer up.
    if not any(file for pattern in _TOKENIZERS for file in path.glob(pattern)):
        raise ModelError(
            f"model directory {path} has no tokenizer (no tokenizer.json); copy its files there too"
        )
    for weights in _weight_files(path):
        _validate_safetensors(weights)


def validate_causal(config: Any, source: str) -> None:
    """Refuse a configuration whose model does not predict the next token.

    Args:
        config: A transformers configuration.
        source: The model's name for the error.

    Raises:
        ModelError: It is an encoder, an encoder-decoder or a model with another head.
    """
    kind = config.model_type
    causal_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    declared = config.architectures or []
    reason = ""
    if causal_class is None:
        reason = f"model type {kind!r} has no causal form"
    elif config.is_encoder_decoder:
        reason = f"model type {kind!r} is an encoder with a decoder"
    elif declared and not any(name == causal_class or name.endswith(_HEADS) for name in declared):
        reason = f"it was saved as {declared[0]}"
    elif not declared and config.to_dict().get("is_decoder") is False:
        reason = f"model type {kind!r} is an encoder here (is_decoder is false)"
    if reason:
        raise ModelError(
            f"{source} is not a causal language model: {reason}; "
            "use a decoder-only model such as a Llama, Qwen or Mistral"
        )


def _weight_files(path: Path) -> list[Path]:
    if (path / _INDEX).is_file():
        index = read_object(path / _INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise ModelError(f"{path / _INDEX} has no weight_map; get the model again")
        return [path / name for name in sorted(set(index.values()))]
    if (path / _SINGLE).is_file():
        return [path / _SINGLE]
    if any((path / name).is_file() for name in _PICKLES):
        return []
    raise ModelError(
        f"model directory {path} has no weights: neither {_SINGLE} nor {_INDEX}; "
        "copy the weights there too"
    )


def _validate_safetensors(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is missing; copy every file of the model")
    try:
        path.open("rb").close()  # as the library takes what may not be read for what is not there
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    try:
        # Opening reads the header and compares the file's length with it.
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is damaged or cut short ({first_line(error)}, {path.stat().st_size} bytes); "
            "copy it again"
        ) from error
    if not names:
        raise ModelError(f"{path} holds no weights; copy it again")

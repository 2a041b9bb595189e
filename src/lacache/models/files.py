"""Check a model's files before anything large is loaded."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lacache.common.files import file_sha256, parse_json
from lacache.errors import ModelError
from lacache.models.third_party import first_line

MANIFEST = "lacache-manifest.json"
"""Sizes and SHA-256 of a converted model's files. Written last, so it lists complete files."""

# Up to this size the content is checked at every start (0.2 s for 270 MB), above it the size alone.
HASHED_BYTES = 2 << 30

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Older checkpoints; transformers reads them, without running code from them.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer*", "vocab.*", "*.model", "tekken.json")
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def validate_directory(path: Path) -> None:
    """Refuse a local path that is not a directory with a readable config.json.

    Raises:
        ModelError: `path` is a file, or has no readable config.json.
    """
    if not path.is_dir():
        raise ModelError(f"model {path} is a file; give the directory it is in, or a .gguf file")
    config = path / "config.json"
    if not config.is_file():
        raise ModelError(
            f"model directory {path} has no config.json; "
            "give the directory that save_pretrained wrote"
        )
    read_object(config)


def validate_files(path: Path) -> None:
    """Refuse a model directory whose tokenizer or weights are missing or cut short.

    Raises:
        ModelError: A file is missing, cut short or unreadable.
    """
    # Without any of these files, some versions of transformers create an empty tokenizer.
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
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of a model.

    Raises:
        ModelError: The file cannot be read, or holds something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON ({first_line(error)}); get the model again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object; get the model again")
    return content


def write_manifest(folder: Path) -> None:
    """Record the size and SHA-256 of every file in `folder`."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({"files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Describe the first damage to a converted model; return None if it is whole.

    Compares each file with the manifest: its size, and its SHA-256 up to `HASHED_BYTES`.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {
            name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        }
    except OSError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if size <= HASHED_BYTES and file_sha256(path) != sha256:
            return f"{name} does not have the content that was written"
    return None


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
        path.open("rb").close()  # transformers would report an unreadable file as missing
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

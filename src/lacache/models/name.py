"""What a model is called, and whether there can be one of that name, before anything is loaded."""

import re
from pathlib import Path
from typing import Any

from lacache.common.files import parse_json
from lacache.errors import ModelError
from lacache.models.embedded import DEFAULT_MODEL
from lacache.models.errors import first_line

# The hub's own rule: one or two parts, no leading or trailing punctuation.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
REMEDY = "give a directory that holds a model, a hub name, or 'default' for the embedded model"


def model_name(name: str | Path | None) -> str:
    """What a model that `load_model` loads is called in records, without loading it.

    Raises:
        ModelError: There is no such file or directory, and it is no name on the hub either.
    """
    if name is None or name == "default":
        return DEFAULT_MODEL.name
    path = Path(name).expanduser()
    if is_gguf(path):
        return path.stem
    if path.exists():
        validate_directory(path)
        return path.resolve().name
    is_file_name = path.suffix.lower() == ".gguf"
    if isinstance(name, Path) or is_file_name or not _HUB_NAME.fullmatch(name):
        raise ModelError(f"model {str(name)!r} does not exist; {REMEDY}")
    return name


def is_gguf(path: Path) -> bool:
    """Whether it is a file to convert."""
    return path.is_file() and path.suffix.lower() == ".gguf"


def validate_directory(path: Path) -> None:
    """Refuse a local path that is not a directory with a readable config.json.

    Raises:
        ModelError: It is a file, or has no such file.
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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        ModelError: It cannot be read, or holds something else.
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

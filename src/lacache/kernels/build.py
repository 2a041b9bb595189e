"""The library of the kernels in C++: compiled when it is first needed, and kept."""

import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from lacache.common.files import cache_home
from lacache.errors import CompilerError

SOURCE = Path(__file__).with_name("kernels.cpp")

# -ffast-math, since only with it a compiler computes several exponentials at once.
_FLAGS = ("-std=c++20", "-O3", "-ffast-math", "-fPIC", "-fopenmp", "-w")
_LINKED = ("-fopenmp", "-lc10", "-ltorch_cpu")
_VECTORS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"),
}
_SECONDS = 600
_LOADING = Lock()
_loaded = False


def load_kernels() -> None:
    """Define the operators `torch.ops.lacache.*`, once for the process.

    Raises:
        CompilerError: there is no C++ compiler, or it failed; it says what the compiler said.
    """
    global _loaded
    with _LOADING:
        _load()
        _loaded = True


def kernels_loaded() -> bool:
    """Return whether the operators are defined."""
    return _loaded


@cache
def _load() -> None:
    try:
        folder = cache_home() / "kernels"
    except RuntimeError as error:
        raise CompilerError(f"no place for compiled code ({error}); set LACACHE_HOME") from error
    library = build_kernels(folder)
    load: Any = torch.ops.load_library  # has no types
    try:
        load(library)
    except OSError as error:
        with suppress(OSError):
            library.unlink(missing_ok=True)
        raise CompilerError(
            f"{library} could not be loaded ({error.__cause__ or error}); delete it if it is still "
            "there, try again, and if that does not help another C++ compiler in CXX"
        ) from error
    torch.library.register_fake("lacache::product", _fake_product)
    torch.library.register_fake("lacache::packed_product", _fake_packed_product)
    torch.library.register_fake("lacache::attend", _fake_attend)
    torch.library.register_fake("lacache::attend_coded", _fake_attend_coded)


def build_kernels(folder: Path) -> Path:
    """The library in a folder, made if it is not there, whole or not at all.

    Raises:
        CompilerError: it could not be made.
    """
    try:
        compiler = shlex.split(os.environ.get("CXX") or "c++")
    except ValueError as error:
        raise CompilerError(f"CXX={os.environ['CXX']!r} is no command ({error})") from error
    flags = (
        *_FLAGS,
        *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    )
    kinds = (torch.__version__, platform.machine())
    read = [path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    what = repr((read, compiler, flags, _LINKED, kinds))
    library = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.so"
    try:
        if library.is_file():
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            made = _compile(compiler, flags, Path(scratch))
            # At once, so that others who build it too find it whole or not at all.
            made.replace(library)
    except OSError as error:
        raise CompilerError(f"{folder} cannot be used ({error}); set LACACHE_HOME") from error
    return library


def _compile(compiler: list[str], flags: tuple[str, ...], folder: Path) -> Path:
    try:
        # Brings setuptools, which not everybody has, and takes a while.
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError as error:
        raise CompilerError(f"torch cannot compile here ({error}); install setuptools") from error
    compiled, linked = folder / "kernels.o", folder / "kernels.so"
    includes = [f"-I{path}" for path in include_paths()]
    found = [f"-L{path}" for path in library_paths()]
    _call([*compiler, *flags, *includes, "-c", str(SOURCE), "-o", str(compiled)])
    # Linking with -ffast-math would let the whole process lose its smallest numbers.
    _call([*compiler, "-shared", str(compiled), "-o", str(linked), *_LINKED, *found])
    return linked


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise CompilerError(
            f"{command[0]} took longer than {_SECONDS} s; name another compiler in CXX"
        ) from error
    except OSError as error:
        raise CompilerError(
            f"the C++ compiler {command[0]!r} cannot be run ({error.strerror}); install one, or "
            "name another in CXX"
        ) from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise CompilerError(
            f"{command[0]} failed ({said.strip()[:300]}); name another compiler in CXX"
        )


def _fake_product(weight: Tensor, vector: Tensor) -> Tensor:
    """Return an empty result, whose shape torch.compile has to know."""
    return vector.new_empty(weight.shape[0])


def _fake_packed_product(
    low: Tensor,
    high: Tensor | None,
    scales: Tensor,
    factors: Tensor | None,
    offsets: Tensor | None,
    offset_factors: Tensor | None,
    zero: int,
    out_features: int,
    states: Tensor,
    exact: bool,
) -> Tensor:
    return states.new_empty(len(states), out_features)


def _fake_attend(
    query: Tensor, keys: Tensor, values: Tensor, first_slots: Tensor, last_slots: Tensor
) -> Tensor:
    return query.new_empty(*query.shape[:3], values.shape[-1])


def _fake_attend_coded(
    query: Tensor,
    keys: Tensor,
    key_scales: Tensor,
    values: Tensor,
    value_scales: Tensor,
    first_slots: Tensor,
    last_slots: Tensor,
) -> Tensor:
    size = values.shape[-1] * (2 if values.dtype is torch.uint8 else 1)
    return query.new_empty(*query.shape[:3], size)

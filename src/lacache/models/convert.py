"""Convert a GGUF file once into a model directory in the user's cache: in bfloat16, or packed."""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from tokenizers import pre_tokenizers

from lacache.common.files import cache_home
from lacache.common.lock import waiting_lock
from lacache.common.packages import require_modules
from lacache.errors import ModelError
from lacache.models.files import find_damage, write_manifest
from lacache.models.packed.folder import PackedTensors
from lacache.models.packed.matrices import GgufMatrices
from lacache.models.packed.parts import PART_WEIGHTS, GgufParts, frugal_gguf
from lacache.models.third_party import first_line, is_disk_full, model_errors, quiet

# Increase it when the conversion changes, so that older results are not used.
_FORMAT = 1
_PACKED_FORMAT = 2
# Tokenizer and configuration, over the two bytes of each weight.
_SLACK_BYTES = 32 << 20
_STEPS = ("Reading the GGUF file", "Unpacking the weights", "Writing the model", "Checking it")
_PACKED_STEPS = (_STEPS[0], "Packing the weights", *_STEPS[2:])

NextStep = Callable[[], None]


def converted_folder(name: str, sha256: str, *, packed: bool = False) -> Path:
    """Return the folder of the model that a GGUF file with this SHA-256 is converted to."""
    kind = f"packed-v{_PACKED_FORMAT}" if packed else f"v{_FORMAT}"
    return cache_home() / "models" / f"{name}-{sha256[:12]}-{kind}"


def free_bytes(folder: Path) -> int:
    """Return the free disk space at `folder`, in bytes."""
    return shutil.disk_usage(folder).free


def ensure_converted(
    folder: Path,
    locate: Callable[[], Path],
    *,
    notice: str,
    packed: bool = False,
    progress: bool = True,
    free: Callable[[Path], int] = free_bytes,
) -> Path:
    """Convert a GGUF file into the model directory `folder`, unless that was done before.

    The model is written under a temporary name and renamed when it is complete, so an interrupted
    conversion is never used. One process converts while others wait. A damaged folder is
    converted again.

    Args:
        folder: Directory of the converted model.
        locate: Returns the path of the GGUF file; called only if it is needed.
        notice: Description of the model, printed at the conversion.
        packed: Whether weights stay as they are in the file, where that is possible.
        progress: Show progress on stderr.
        free: Returns the free disk space at a folder, in bytes.

    Raises:
        MissingExtraError: A package that the conversion needs is not installed.
        ModelError: The file is damaged or not a causal language model, or there is no space.
    """
    if folder.is_dir() and find_damage(folder) is None:
        return folder
    # Keep the present stderr: it is redirected below, to hide tqdm's bars.
    console = Console(file=sys.stderr, quiet=not progress, markup=False, highlight=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = "Another process is converting this model: waiting for it."
        lock = folder.with_name(f".{folder.name}.lock")
        with waiting_lock(lock, lambda: console.print(waiting)):
            if folder.is_dir():
                damage = find_damage(folder)
                if damage is None:
                    return folder
                console.print(f"The converted model is damaged: {damage}. Converting it again.")
                shutil.rmtree(folder)
            _convert_locked(folder, locate(), notice, console, free, packed=packed)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder.parent} cannot be written ({first_line(error)}); "
            "set LACACHE_HOME to a folder that can be"
        ) from error
    return folder


def _convert_locked(
    folder: Path,
    gguf: Path,
    notice: str,
    console: Console,
    free: Callable[[Path], int],
    *,
    packed: bool,
) -> None:
    # We hold the lock, so the process that left this folder has ended.
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    require_modules("gguf", "accelerate", why="converting a GGUF file", extra="gguf")
    console.print(f"Converting once: {notice}")
    with _steps(console, _PACKED_STEPS if packed else _STEPS) as next_step:
        next_step()
        content = _inspect(gguf)
        needed = content.converted_bytes(packed=packed) + _SLACK_BYTES
        available = free(folder.parent)
        if available < needed:
            raise ModelError(
                f"{folder.parent} has {available / 1e6:.0f} MB free and the converted model needs "
                f"{needed / 1e6:.0f} MB; free some space or set LACACHE_HOME to another disk"
            )
        tokenizer = _read_tokenizer(gguf, content)
        next_step()
        try:
            partial.mkdir()
            if packed:
                model, tensors = _read_packed(gguf, content.parts, partial)
            else:
                model = _read_model(gguf)
            next_step()
            with quiet():
                if packed:
                    tensors.write(model, partial)
                else:
                    model.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
            next_step()
            write_manifest(partial)
            os.replace(partial, folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if is_disk_full(error):
                raise ModelError(
                    f"{folder.parent} ran out of space while the model was written (it needs "
                    f"{needed / 1e6:.0f} MB, {free(folder.parent) / 1e6:.0f} MB are free now); "
                    "free some space or set LACACHE_HOME to another disk"
                ) from error
            raise
    console.print(f"Converted into {folder}", soft_wrap=True)


@contextlib.contextmanager
def _steps(console: Console, names: Sequence[str]) -> Iterator[NextStep]:
    """Show a progress bar over named steps; the yielded function advances it."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed} of {task.total}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, redirect_stderr=False, redirect_stdout=False)
    task = bar.add_task("", total=len(names))
    remaining = iter(names)

    def next_step() -> None:
        bar.update(task, description=next(remaining), advance=1)

    with bar:
        yield next_step


@final
@dataclass(frozen=True)
class _Content:
    parts: GgufParts
    pre_tokenizer: str

    def converted_bytes(self, *, packed: bool) -> float:
        """Estimate the disk space of the converted model, and of a part beside it."""
        if not packed:
            return 2 * sum(tensor.num_weights for tensor in self.parts.tensors)
        parts = (
            sum(tensor.num_bytes for tensor in part)
            for part in self.parts.split(PART_WEIGHTS, tied=True)
        )
        return 1.2 * self.parts.path.stat().st_size + max(parts)


def _inspect(gguf: Path) -> _Content:
    from gguf import GGUFReader

    with model_errors(
        f"{gguf} is not a readable GGUF file", "it may be cut short or damaged; get it again"
    ):
        reader = GGUFReader(gguf)
        field = reader.get_field("tokenizer.ggml.pre")
        pre = "" if field is None else bytes(field.parts[field.data[0]]).decode()
        return _Content(GgufParts.from_reader(gguf, reader), pre)


def _read_tokenizer(gguf: Path, content: _Content) -> Any:
    with _transformers_errors(gguf):
        # AutoTokenizer decides by the architecture; for llama, older versions take CodeLlama's.
        tokenizer: Any = transformers.PreTrainedTokenizerFast.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
        if content.pre_tokenizer == "smollm":
            _split_digits(tokenizer)
    return tokenizer


def _read_model(gguf: Path) -> Any:
    """Return the model in bfloat16."""
    with _transformers_errors(gguf):
        model, missing = _load(transformers.AutoModelForCausalLM, gguf)
    _refuse_missing(gguf, missing)
    return model


def _read_packed(gguf: Path, parts: GgufParts, folder: Path) -> tuple[Any, PackedTensors]:
    """Return a model that has the configuration, and the packed tensors.

    transformers unpacks all of a file at once. So it gets files of a part of the tensors each,
    which lie in `folder` meanwhile, and the memory of one unpacked part is enough.
    """
    with _transformers_errors(gguf):
        config = transformers.AutoConfig.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
        kind = _class_of_parts(config)
    packed = PackedTensors()
    part = folder / "part.gguf"
    lost: list[set[str]] = []
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", True))
    for tensors in parts.split(PART_WEIGHTS, tied=tied):
        parts.write(tensors, part)
        with _transformers_errors(gguf), frugal_gguf():
            model, missing = _load(kind, part, config=config)
        packed.add(model, GgufMatrices(part).find, missing)
        lost.append(missing)
        part.unlink()
    _refuse_missing(gguf, set.intersection(*lost))
    return model, packed


def _class_of_parts(config: Any) -> Any:
    """Return the class of a model that may lack weights, without giving them random numbers."""
    loader: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        base = type(loader.from_config(config))
    # Memory that nothing writes to is only reserved. Each missing weight must be reported, as
    # another part has it.
    changes = {"initialize_weights": lambda model: None, "_keys_to_ignore_on_load_missing": None}
    return type(base.__name__, (base,), {"__module__": base.__module__, **changes})


def _load(kind: Any, gguf: Path, **options: Any) -> tuple[Any, set[str]]:
    """Return a model in bfloat16, and the names of weights that the file lacks."""
    # Versions that have this class keep the weights packed by default, and cannot save them.
    if "GgufConfig" in dir(transformers):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, loading = kind.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        local_files_only=True,
        dtype=torch.bfloat16,
        output_loading_info=True,
        **options,
    )
    return model, set(loading["missing_keys"])


def _refuse_missing(gguf: Path, missing: set[str]) -> None:
    if missing:
        raise ModelError(
            f"{gguf} lacks the weights {', '.join(sorted(missing)[:3])}; "
            "it may be cut short or damaged; get it again"
        )


@contextlib.contextmanager
def _transformers_errors(gguf: Path) -> Iterator[None]:
    """Silence transformers, and report what it cannot read."""
    # One of the progress bars can only be silenced by its stream.
    silence = contextlib.redirect_stderr(io.StringIO())
    remedy = "use a GGUF file of a causal language model that transformers can read"
    with quiet(), silence, model_errors(f"{gguf} cannot be converted", remedy):
        yield


def _split_digits(tokenizer: Any) -> None:
    """Split numbers into digits, as SmolLM2's own tokenizer does; its GGUF form loses this."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )

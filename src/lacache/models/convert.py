"""Convert a GGUF file once into a bfloat16 model directory in the user's cache."""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import transformers
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from tokenizers import pre_tokenizers

from lacache.common.packages import require_modules
from lacache.errors import ModelError
from lacache.models.errors import first_line, is_disk_full, model_errors
from lacache.models.manifest import find_damage, write_manifest
from lacache.models.quiet import quiet

# Tokenizer and configuration, over the two bytes of each weight.
_SLACK_BYTES = 32 << 20
_STEPS = ("Reading the GGUF file", "Unpacking the weights", "Writing the model", "Checking it")

NextStep = Callable[[], None]


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written below `folder`."""
    return shutil.disk_usage(folder).free


def ensure_converted(
    folder: Path,
    locate: Callable[[], Path],
    *,
    notice: str,
    progress: bool = True,
    free: Callable[[Path], int] = free_bytes,
) -> Path:
    """The model directory `folder`, converted from a GGUF file where it is not there yet.

    The model is written under another name and moved into place when it is complete, so that an
    interrupted conversion is never taken for a whole one. One process converts, others wait for
    it. A damaged folder is converted again.

    Args:
        folder: Where the converted model belongs.
        locate: Gives the GGUF file; called only when it is needed.
        notice: What the model is, said once at the conversion.
        progress: Show on stderr what is being done.
        free: Bytes that may still be written below a folder.

    Raises:
        MissingExtraError: A package that the conversion needs is not installed.
        ModelError: The file is damaged or not a causal language model, or there is no space.
    """
    if folder.is_dir() and find_damage(folder) is None:
        return folder
    # Where stderr is a terminal, tqdm's bars would break up ours: keep the stream of now.
    console = Console(file=sys.stderr, quiet=not progress, markup=False, highlight=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, console):
            if folder.is_dir():
                damage = find_damage(folder)
                if damage is None:
                    return folder
                console.print(f"The converted model is damaged: {damage}. Converting it again.")
                shutil.rmtree(folder)
            _convert_locked(folder, locate(), notice, console, free)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder.parent} cannot be written ({first_line(error)}); "
            "set LACACHE_HOME to a folder that can be"
        ) from error
    return folder


@contextlib.contextmanager
def _lock(folder: Path, console: Console) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print("Another process is converting this model: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert_locked(
    folder: Path,
    gguf: Path,
    notice: str,
    console: Console,
    free: Callable[[Path], int],
) -> None:
    # The lock is ours, so whoever left this folder behind is gone.
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    require_modules("gguf", "accelerate", why="converting a GGUF file", extra="gguf")
    console.print(f"Converting once: {notice}")
    with _steps(console) as next_step:
        next_step()
        content = _inspect(gguf)
        needed, available = 2 * content.num_weights + _SLACK_BYTES, free(folder.parent)
        if available < needed:
            raise ModelError(
                f"{folder.parent} has {available / 1e6:.0f} MB free and the converted model needs "
                f"{needed / 1e6:.0f} MB; free some space or set LACACHE_HOME to another disk"
            )
        model, tokenizer = _read_gguf(gguf, content, next_step)
        next_step()
        try:
            partial.mkdir()
            with quiet():
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
def _steps(console: Console) -> Iterator[NextStep]:
    """A progress bar over `_STEPS`; the function given moves it on to the next one."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed} of {task.total}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, redirect_stderr=False, redirect_stdout=False)
    task = bar.add_task("", total=len(_STEPS))
    remaining = iter(_STEPS)

    def next_step() -> None:
        bar.update(task, description=next(remaining), advance=1)

    with bar:
        yield next_step


@final
@dataclass(frozen=True)
class _Content:
    num_weights: int
    pre_tokenizer: str


def _inspect(gguf: Path) -> _Content:
    from gguf import GGUFReader

    with model_errors(
        f"{gguf} is not a readable GGUF file", "it may be cut short or damaged; get it again"
    ):
        reader = GGUFReader(gguf)
        field = reader.get_field("tokenizer.ggml.pre")
        pre = "" if field is None else bytes(field.parts[field.data[0]]).decode()
        return _Content(sum(int(tensor.n_elements) for tensor in reader.tensors), pre)


def _read_gguf(gguf: Path, content: _Content, next_step: NextStep) -> tuple[Any, Any]:
    """The model, in bfloat16, and the tokenizer."""
    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    unpack: dict[str, Any] = {}
    # Versions that have this class keep the weights packed, and refuse to save them, without it.
    if "GgufConfig" in dir(transformers):
        unpack["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # One of the progress bars has no switch but the stream that it is written to.
    silence = contextlib.redirect_stderr(io.StringIO())
    remedy = "use a GGUF file of a causal language model that transformers can read"
    with quiet(), silence, model_errors(f"{gguf} cannot be converted", remedy):
        # AutoTokenizer would go by the architecture: for llama, older versions take CodeLlama's.
        tokenizer: Any = transformers.PreTrainedTokenizerFast.from_pretrained(
            gguf.parent, **options
        )
        if content.pre_tokenizer == "smollm":
            _split_digits(tokenizer)
        next_step()
        loader: Any = transformers.AutoModelForCausalLM
        model, loading = loader.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, output_loading_info=True, **options, **unpack
        )
    if loading["missing_keys"]:
        raise ModelError(
            f"{gguf} lacks the weights {', '.join(sorted(loading['missing_keys'])[:3])}; "
            "it may be cut short or damaged; get it again"
        )
    return model, tokenizer


def _split_digits(tokenizer: Any) -> None:
    """Split numbers into digits, as SmolLM2's own tokenizer does; its GGUF form loses this."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )

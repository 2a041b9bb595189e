"""Load a causal language model and its tokenizer."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import transformers
from rich.console import Console
from rich.text import Text

from lacache.common.files import file_sha256
from lacache.common.packages import notice_once, quiet_imports
from lacache.common.validation import validate_dtype, validate_threads
from lacache.errors import ModelError
from lacache.models.convert import converted_folder, ensure_converted
from lacache.models.files import validate_causal, validate_files
from lacache.models.name import DEFAULT_MODEL, REMEDY, is_gguf, model_name, validate_packing
from lacache.models.packed.folder import PACKED, read_packed, round_model
from lacache.models.third_party import model_errors, quiet

with quiet_imports():
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@final
@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: The causal language model, in evaluation mode, on the CPU.
        tokenizer: The model's tokenizer.
        name: The model's name in tables and records.
        path: The directory that the model was loaded from; None for a hub name.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    path: Path | None


def load_model(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    threads: int | None = None,
    weights: str | None = None,
    progress: bool = True,
) -> LoadedModel:
    """Load a model and its tokenizer onto the CPU.

    A local directory or GGUF file, and the default model, never touch the network.

    Args:
        name: None or "default" for the embedded SmolLM2-135M-Instruct; else a directory that
            transformers can load, a GGUF file (converted once, like the default model, into the
            user's cache), or a name on the hub.
        dtype: "auto" for the stored type, or "bfloat16", "float16" or "float32".
        threads: Number of torch threads; None leaves torch's setting.
        weights: "file" keeps the weights of a GGUF file as they are, in 4 to 8 bits, in place of
            unpacking them. "int4" rounds those of any model, the embedding's and the head's to 8
            bits. Products on CPU then round activations to 8 bits (docs/adr/0029).
        progress: Show progress on stderr.

    Raises:
        ConfigError: `dtype`, `threads` or `weights` is not possible.
        MissingExtraError: A package that the model needs is not installed.
        ModelError: There is no such model, it is damaged, or it is not a causal language model.
    """
    torch_dtype = _parse_dtype(dtype)
    validate_packing(name, weights)
    if threads is not None:
        validate_threads(threads)
        torch.set_num_threads(threads)

    called = model_name(name)
    folder = model_folder(name, packed=weights == "file", progress=progress)
    loaded = _load(called if folder is None else folder, called, folder, torch_dtype, progress)
    if weights == "int4":
        round_model(loaded.model)
    return loaded


def model_folder(
    name: str | Path | None = None, *, packed: bool = False, progress: bool = True
) -> Path | None:
    """Return the directory of a model, after converting it into the user's cache if needed.

    Args:
        name: As in `load_model`.
        packed: Whether the weights of a GGUF file stay as they are.
        progress: Show progress on stderr.

    Returns:
        None for a name on the hub.

    Raises:
        MissingExtraError: A package that the model needs is not installed.
        ModelError: There is no such model, or it is damaged.
    """
    if name is None or name == "default":
        folder = converted_folder(DEFAULT_MODEL.name, DEFAULT_MODEL.sha256, packed=packed)
        if progress:
            notice_once(f"Model: {DEFAULT_MODEL.notice}")
        name = DEFAULT_MODEL.name
        ensure_converted(
            folder, DEFAULT_MODEL.locate, notice=name, packed=packed, progress=progress
        )
        return folder
    path = Path(name).expanduser()
    if is_gguf(path):
        gguf = path.resolve()
        with model_errors(f"{path} cannot be read", "make the file readable"):
            folder = converted_folder(path.stem, file_sha256(gguf), packed=packed)
        ensure_converted(folder, lambda: gguf, notice=str(gguf), packed=packed, progress=progress)
        return folder
    return path if path.exists() else None


def _parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    name = str(dtype).removeprefix("torch.")
    validate_dtype(name)
    return name if name == "auto" else getattr(torch, name)


def _load(
    source: Path | str,
    name: str,
    path: Path | None,
    dtype: str | torch.dtype,
    progress: bool,
) -> LoadedModel:
    options: dict[str, Any] = {"local_files_only": path is not None, "trust_remote_code": False}
    if path is None:
        what = f"model {name!r} is not a directory and could not be downloaded from the hub"
        remedy = f"check the name and the network, or {REMEDY}"
    else:
        what, remedy = f"model directory {path} cannot be loaded", REMEDY
    console = Console(file=sys.stderr, quiet=not progress, markup=False, highlight=False)
    spinner = console.status(Text(f"Loading {name}"), refresh_per_second=8)
    if path is None:
        # A download shows its own bars, which a spinner would break up.
        console.print(f"{name} is not a directory: asking the hub for it")
    elif progress:
        spinner.start()
    try:
        with quiet(bars=path is None and progress), model_errors(what, remedy):
            config = transformers.AutoConfig.from_pretrained(source, **options)
            validate_causal(config, str(path or name))
            is_packed = path is not None and (path / PACKED).is_file()
            if path is not None and not is_packed:
                validate_files(path)
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, **options)
            if path is not None and is_packed:
                model = read_packed(path, config, dtype)
                return LoadedModel(model, tokenizer, name, path)
            loader: Any = transformers.AutoModelForCausalLM
            model, loading = loader.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                # Reported below instead, by name.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    finally:
        spinner.stop()
    lost = sorted(loading["missing_keys"]) + sorted(key for key, *_ in loading["mismatched_keys"])
    if lost:
        raise ModelError(
            f"{path or name} lacks {len(lost)} of the weights of a {type(model).__name__}, such as "
            f"{lost[0]}, or they have another shape; use a complete causal language model"
        )
    model.eval()
    return LoadedModel(model, tokenizer, name, path)

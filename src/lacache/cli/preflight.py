"""Checks that need no model and run before one is loaded, and the dtype to load it in."""

from lacache.common.validation import physical_bytes, validate_dtype, validate_threads
from lacache.errors import ConfigError
from lacache.models import model_name
from lacache.policies import Budget


def validate_loading(model: str | None, *, dtype: str, threads: int) -> None:
    """Check the arguments of `load_model` without the seconds that its imports take.

    Raises:
        ConfigError: there is no such type, or there are too many threads.
        ModelError: there is no such file or directory, or it contains no model.
    """
    validate_dtype(dtype)
    validate_threads(threads)
    model_name(model)


def validate_memory(budget: Budget | None, num_sequences: int = 1) -> None:
    """Check that the machine has the memory for a budget in bytes of each sequence.

    Raises:
        ConfigError: it has less.
    """
    if budget is not None:
        validate_bytes(str(budget), budget.num_bytes, num_sequences)


def validate_bytes(budget: str, num_bytes: int, num_sequences: int = 1) -> None:
    """Check that the machine has a number of bytes for each sequence.

    Args:
        budget: the budget as it was given, for the error.
        num_bytes: bytes of one sequence.
        num_sequences: sequences at the same time.

    Raises:
        ConfigError: it has less.
    """
    needed, available = num_sequences * num_bytes, physical_bytes()
    if needed > available:
        each = f" for each of {num_sequences} sequences" if num_sequences > 1 else ""
        raise ConfigError(
            f"budget={budget}{each} is {needed:,} bytes, and this machine has {available:,}; try "
            f"{max(1, available // 4 // num_sequences // 2**20)}MiB"
        )


def computing_dtype(dtype: str) -> str:
    """Return the dtype for commands that process many tokens.

    `auto` is the stored type, but float32 on a processor without 16-bit arithmetic, where it takes
    twice the memory and a tenth of the time.
    """
    import torch
    from rich.console import Console

    from lacache.engine.cpu.linear import has_arithmetic

    if dtype != "auto" or has_arithmetic(torch.bfloat16):
        return dtype
    Console(stderr=True).print(
        "This processor has no 16-bit arithmetic, so float32 is used; "
        "--dtype bfloat16 takes half the memory and ten times as long."
    )
    return "float32"

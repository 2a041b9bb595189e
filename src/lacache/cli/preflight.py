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


def validate_device(device: str) -> None:
    """Check that torch can compute on a device of this machine.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    try:
        torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device={device} must be a name that torch knows, such as cpu, cuda or cuda:1; try "
            "--device cpu"
        ) from error
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={device} cannot be used ({reason}); try --device cpu") from error


def validate_memory(budget: Budget | None, num_sequences: int = 1) -> None:
    """Check that the machine has the memory for a budget of each sequence.

    Raises:
        ConfigError: it has less.
    """
    if budget is not None:
        # Without the model, a token counts as the byte that it takes at the very least.
        validate_bytes(str(budget), budget.num_bytes or budget.tokens, num_sequences)


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
        least = "at least " if budget.isdecimal() else ""
        a_quarter = available // 4 // num_sequences // 2**20
        remedy = f"{a_quarter}MiB" if a_quarter else "fewer sequences"
        raise ConfigError(
            f"budget={budget}{each} is {least}{needed:,} bytes, and this machine has "
            f"{available:,}; try {remedy}"
        )


def computing_dtype(dtype: str) -> str:
    """Return the dtype for commands that process many tokens.

    `auto` is the stored type, but float32 on a processor without 16-bit arithmetic, where it takes
    twice the memory and a tenth of the time.
    """
    import torch
    from rich.console import Console

    from lacache.models.arithmetic import has_arithmetic

    if dtype != "auto" or has_arithmetic(torch.bfloat16):
        return dtype
    Console(stderr=True).print(
        "This processor has no 16-bit arithmetic, so float32 is used; "
        "--dtype bfloat16 takes half the memory and ten times as long."
    )
    return "float32"

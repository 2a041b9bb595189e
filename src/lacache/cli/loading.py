"""What can be told of a model before the libraries that load it are, which takes seconds."""

from lacache.common.memory import physical_bytes
from lacache.common.validation import validate_dtype, validate_threads
from lacache.errors import ConfigError
from lacache.models import model_name
from lacache.policies import Budget


def validate_loading(model: str | None, *, dtype: str, threads: int) -> None:
    """Refuse what `load_model` would.

    Raises:
        ConfigError: no such type, or too many threads.
        ModelError: there is no such file or directory, or it holds no model.
    """
    validate_dtype(dtype)
    validate_threads(threads)
    model_name(model)


def validate_memory(budget: Budget | None, rows: int = 1) -> None:
    """Refuse a budget in bytes that the machine does not have for each of so many texts.

    Raises:
        ConfigError: that.
    """
    if budget is not None:
        validate_bytes(str(budget), budget.num_bytes, rows)


def validate_bytes(budget: str, num_bytes: int, rows: int = 1) -> None:
    """Refuse a budget that is so many bytes for each of so many texts, if they are not there.

    Raises:
        ConfigError: that.
    """
    needed, most = rows * num_bytes, physical_bytes()
    if needed > most:
        texts = f" for each of {rows} texts" if rows > 1 else ""
        raise ConfigError(
            f"budget={budget}{texts} is {needed:,} bytes, and this machine has {most:,}; try "
            f"{max(1, most // 4 // rows // 2**20)}MiB"
        )

"""Contain what the libraries underneath raise and print."""

import contextlib
import errno
import logging
from collections.abc import Iterator

from lacache.errors import LaCacheError, ModelError


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__


def is_disk_full(error: BaseException) -> bool:
    """Check whether a write failed for lack of space.

    The safetensors writer does not raise OSError, so its message is compared.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)


@contextlib.contextmanager
def model_errors(what: str, remedy: str) -> Iterator[None]:
    """Convert any exception to `ModelError("{what}: {its first line}; {remedy}")`.

    The parsers raise KeyError, IndexError, struct.error and others on a damaged file.
    """
    try:
        yield
    except (LaCacheError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{what}: {first_line(error)}; {remedy}") from error


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence the logs of transformers and huggingface_hub, and their bars unless `bars`.

    Nothing is lost: missing weights and the like are read from the loading information.
    """
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as library

    had_bars, verbosity = library.is_progress_bar_enabled(), library.get_verbosity()
    hub_verbosity = hub.get_verbosity()
    if not bars:
        library.disable_progress_bar()
    library.set_verbosity(logging.CRITICAL)
    hub.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        hub.set_verbosity(hub_verbosity)
        if had_bars:
            library.enable_progress_bar()

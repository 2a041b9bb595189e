"""Turn what the libraries underneath raise into one line of ours."""

import contextlib
import errno
from collections.abc import Iterator

from lacache.errors import LaCacheError, ModelError


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or the error's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space.

    The safetensors writer does not raise OSError: its text is all there is to tell by.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)


@contextlib.contextmanager
def model_errors(what: str, remedy: str) -> Iterator[None]:
    """Raise whatever a library raises as `ModelError("{what}: {its first line}; {remedy}")`.

    Every kind of exception is meant: a damaged file comes out of the parsers as KeyError,
    IndexError, struct.error and others, and to the user it is a damaged file.
    """
    try:
        yield
    except (LaCacheError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{what}: {first_line(error)}; {remedy}") from error

"""How the process begins and ends, whatever its streams, its folder and its signals are."""

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM end the process in one line, and so does output without a place.

    What is being written to a file then is finished or removed, since both are raised as
    KeyboardInterrupt. A second signal ends the process at once.
    """
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a job in the background of a shell
            signal.signal(number, stop)
    _open_streams()
    try:
        _validate_folder()
        try:
            yield
        finally:
            sys.stdout.flush()
    except SystemExit as error:
        if signals and error.code == 128 + signal.SIGINT:
            error.code = 128 + signals[0]
        raise
    except BaseException as error:
        # Libraries that are being loaded may make another error of the interruption.
        if signals:
            _end("stopped", 128 + signals[0], error)
        if isinstance(error, BrokenPipeError):  # who read it has seen enough
            _end("", 1, error)
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_ROOM:
            told = f"the output cannot be written ({error.strerror})"
            _end(f"error: {told}; make space, or send it elsewhere", 2, error)
        raise


def _open_streams() -> None:
    """Open a stream that the caller has closed; show what a terminal cannot as a question mark."""
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")


def _validate_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        # Libraries would end the process, each in words of its own.
        told = f"error: the working directory cannot be used ({error.strerror})"
        _end(f"{told}; change to another", 2, error)


def _end(told: str, code: int, error: BaseException) -> None:
    # Else Python tries once more to write what is left, and tells of it.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if told:
        sys.stderr.write(f"{told}\n")
    raise SystemExit(code) from error

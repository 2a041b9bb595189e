"""Start and end of the process: its imports, streams, working directory and signals."""

import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def clean_exit() -> Iterator[None]:
    """End the process with one line on Ctrl-C, SIGTERM or an output that cannot be written.

    Both signals raise KeyboardInterrupt, so that a file that is being written is finished or
    removed. A second signal ends the process at once.
    """
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a background job of a shell
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
        # A library that is being imported may replace KeyboardInterrupt by another error.
        if signals:
            _end("stopped", 128 + signals[0], error)
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has ended, such as head
            _end("", 1, error)
        if isinstance(error, OSError) and error.filename is None and error.errno in _NO_SPACE:
            message = f"error: the output cannot be written ({error.strerror})"
            _end(f"{message}; make space, or send it elsewhere", 2, error)
        raise


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import torch, transformers and what needs them, without searching them for garbage.

    They make 400,000 objects that stay until the process ends. Does nothing where torch is
    imported already.
    """
    if "torch" in sys.modules:
        # Other objects of a longer process, such as a test's, would be kept for ever too.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after a first Ctrl-C, which raises nothing.

    An exception in the middle of a forward would leave layers that hold different tokens. A
    second Ctrl-C raises KeyboardInterrupt, for a step that takes too long.
    """
    stopped = False
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:  # a background job of a shell
        yield lambda: False
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _open_streams() -> None:
    """Open the streams that the caller has closed, and replace characters that have no code."""
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
        # Libraries would end the process with errors that do not name the cause.
        message = f"error: the working directory cannot be used ({error.strerror})"
        _end(f"{message}; change to another", 2, error)


def _end(message: str, code: int, error: BaseException) -> None:
    # Python would otherwise try to write the rest again, and print the failure.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if message:
        sys.stderr.write(f"{message}\n")
    raise SystemExit(code) from error

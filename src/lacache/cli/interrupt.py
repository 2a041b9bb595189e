"""Ctrl-C between two tokens instead of within one."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only makes the given function return True.

    An exception in the middle of a forward would leave layers that hold different tokens. A
    second Ctrl-C does raise KeyboardInterrupt, for a step that takes too long.
    """
    stopped = False
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:  # a job in the background of a shell
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

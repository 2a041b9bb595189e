"""Resident memory of this process, now and at its highest."""

import resource
from pathlib import Path

import psutil

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """What the process has in memory now."""
    return int(psutil.Process().memory_info().rss)


def forget_peak() -> bool:
    """Let `peak_bytes` count from now on; False where the system cannot, so it counts from start.

    Linux only; a model that was just loaded leaves a peak of its own behind.
    """
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most that the process had in memory at any time since `forget_peak`."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

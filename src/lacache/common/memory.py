"""How much memory the machine has."""

import os
import sys


def physical_bytes() -> int:
    """Of this machine; beyond any budget where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize

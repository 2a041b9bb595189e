"""What has to be said where something of others is used: whose it is, and its licence."""

import sys
from functools import cache


@cache
def notice_once(notice: str) -> None:
    """Print a notice on stderr, once for each process."""
    print(notice, file=sys.stderr, flush=True)

"""Files that a user names: what is read of them, and what is not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lacache.errors import InputError


def parse_json(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is not JSON, or so deeply nested that it cannot be read.
    """
    try:
        return json.loads(text, parse_constant=parse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def refuse_device(path: Path, what: str = "") -> None:
    """Refuse what may be read without end, such as /dev/zero; pipes and os.devnull do end.

    Args:
        path: to read.
        what: to call it in the error, such as "text ".

    Raises:
        InputError: it is a device.
    """
    is_device = path.is_char_device() or path.is_block_device()
    if is_device and str(path) != os.devnull:
        raise InputError(f"{what}{path} is a device and may never end; give a file")

"""What JSON holds."""

from typing import Any

Json = dict[str, Any]

"""Layer numbers as text: `0-9,20`."""

import re

from lacache.errors import ConfigError

# Far beyond any model; a typing slip must not fill the memory.
_MOST = 100_000


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer numbers from single ones and ranges, parted by commas; none from an empty text.

    Raises:
        ConfigError: anything else.
    """
    layers: list[int] = []
    for part in text.split(",") if text.strip() else []:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ConfigError(
                f"window_layers={text!r} has {part.strip()!r}, which is neither a layer nor a "
                "range; try 0-9,20"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(
                f"window_layers={text!r} has the range {first}-{last}, which runs backwards; "
                f"try {last}-{first}"
            )
        if last >= _MOST:
            raise ConfigError(
                f"window_layers={text!r} has layer {last}, and no model has that many; try 0-9,20"
            )
        layers.extend(range(first, last + 1))
    return tuple(sorted(set(layers)))

"""Which line stands for which cache."""

from collections.abc import Iterator, Sequence
from typing import Any

from lacache.common.records import Record

# Colours of Okabe and Ito, told apart with every kind of colour blindness.
_COLOURS = {"full": "#444444", "streaming": "#0072B2", "ladder": "#D55E00"}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Two caches of one size often lie on each other, so the lower line is wide and the upper one thin.
_LINES: dict[str, dict[str, Any]] = {
    "full": {"linewidth": 2, "linestyle": (0, (1, 1))},
    "streaming": {"linewidth": 5, "alpha": 0.55},
    "ladder": {"linewidth": 1.8},
}


def colour(record: Record) -> str:
    """The colour of a record's policy."""
    return _COLOURS.get(record["policy"]["name"], _OTHER_COLOURS[0])


def styled(records: Sequence[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Records with line styles: a policy's own the first time, another colour after that."""
    used: set[str] = set()
    others = iter(_OTHER_COLOURS * len(records))
    for record in records:
        name = record["policy"]["name"]
        own = name in _LINES and name not in used
        used.add(name)
        if own:
            yield record, {"color": _COLOURS[name], **_LINES[name]}
        else:
            yield record, {"color": next(others), **_LINES["ladder"]}


def about(record: Record) -> str:
    """Which model read which text."""
    return f"{record['model']['name']}, {record['task']['text']}"

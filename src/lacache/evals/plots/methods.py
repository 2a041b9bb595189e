"""Which colour and mark stands for which method, where many share a picture."""

from collections.abc import Iterable
from typing import Any

# Colours of Okabe and Ito, then of Tol's muted set: told apart with every kind of colour blindness.
_OWN = {
    "full": ("#444444", "."),
    "streaming": ("#0072B2", "o"),
    "ladder": ("#D55E00", "s"),
    "released-ladder": ("#8A3D00", "H"),
    "uniform": ("#E69F00", "^"),
    "random-ladder": ("#999933", "*"),
    "keydiff": ("#009E73", "D"),
    "knorm": ("#56B4E9", "v"),
    "lagkv": ("#CC79A7", "P"),
    "tova": ("#332288", "X"),
    "h2o": ("#882255", "<"),
    "snapkv": ("#117733", ">"),
    "pyramidkv": ("#AA4499", "h"),
    "preset balanced": ("#AA3377", "p"),
    "preset global": ("#228833", "d"),
    "preset local": ("#CCBB44", "8"),
    "preset paper": ("#661100", "H"),
}
_OTHERS = (
    ("#117733", "p"),
    ("#882255", "d"),
    ("#332288", "8"),
    ("#CC79A7", "H"),
    ("#009E73", "P"),
    ("#E69F00", "v"),
    ("#56B4E9", "X"),
)

CLOUD = "#B8B8B8"
"""The colour of draws by chance."""


def method_styles(methods: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """A style for each label.

    Args:
        methods: name and label; names are those of the harness, labels are all different.

    Returns:
        By label, what matplotlib's `plot` takes: colour and marker. A known label or method has its
        own in every picture, a method the first time that it appears; further settings of it, and
        unknown methods, take others.
    """
    styles: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    named = {label: name for name, label in methods}
    for label, name in named.items():
        own = label if label in _OWN else name
        if own in _OWN and own not in taken:
            taken.add(own)
            styles[label] = _style(*_OWN[own])
    used = {style["color"] for style in styles.values()}
    free = tuple(pair for pair in _OTHERS if pair[0] not in used) or _OTHERS
    for i, label in enumerate(label for label in named if label not in styles):
        styles[label] = _style(*free[i % len(free)])
    return styles


def _style(colour: str, marker: str) -> dict[str, Any]:
    return {"color": colour, "marker": marker}


def in_units(num_bytes: Iterable[float]) -> tuple[float, str]:
    """What to divide bytes by for an axis, and the unit's name."""
    most = max(num_bytes, default=0.0)
    return (2.0**20, "MiB") if most >= 4 * 2**20 else (2.0**10, "KiB")

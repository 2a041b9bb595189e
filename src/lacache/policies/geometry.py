"""The ladder's shape: how many units of a band each layer keeps, and where its run starts.

Source: LaCache (arXiv 2507.14204) section 3.2 for the ladder; the released code for "interleaved".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _interleaved(layer: int, span: int, step: int, freed: int) -> int:
    return layer % (freed + 1)


def _consecutive(layer: int, span: int, step: int, freed: int) -> int:
    return min(max(_ceil_div(layer - span + 1, step), 0), freed)


_PHASES: dict[str, Callable[[int, int, int, int], int]] = {
    "interleaved": _interleaved,
    "consecutive": _consecutive,
}
GEOMETRIES = tuple(_PHASES)


@final
@dataclass(frozen=True)
class Geometry:
    """The bands of a ladder over `num_layers` layers.

    A band is `band` neighbouring units that are thinned together: each layer keeps `kept` of them,
    starting at its `phase`, and `freed = band - kept` slots (times the unit) become free.

    Raises:
        ConfigError: a value out of range, or a combination that frees nothing.
    """

    num_layers: int
    span: int
    overlap: int = 0
    kind: str = "interleaved"

    def __post_init__(self) -> None:
        validate_depth(self.num_layers)
        validate_span(self.span, self.overlap, self.kind)
        if self.span >= self.num_layers:
            near = _nearest_working(self.num_layers, self.num_layers - 1, self.overlap)
            raise ConfigError(
                f"span={self.span} must be below the number of layers {self.num_layers}; try {near}"
            )
        if self.freed < 1:
            near = _nearest_working(self.num_layers, self.span, self.overlap)
            raise ConfigError(
                f"span={self.span} with overlap={self.overlap} over {self.num_layers} layers keeps "
                f"all {self.band} units of a band, and at least one must be freed; try {near}"
            )

    @property
    def step(self) -> int:
        """Layers by which the kept run moves on: `span - overlap`."""
        return self.span - self.overlap

    @property
    def band(self) -> int:
        """Units that are thinned together (B)."""
        return 1 + _ceil_div(self.num_layers - self.span, self.step)

    @property
    def kept(self) -> int:
        """Units of a band that each layer keeps (A)."""
        return min(_ceil_div(self.span, self.step), self.band)

    @property
    def freed(self) -> int:
        """Units of a band that each layer frees (R)."""
        return self.band - self.kept

    def phase(self, layer: int) -> int:
        """Return where in a band the kept run of `layer` starts, 0..freed, in units."""
        return _PHASES[self.kind](layer, self.span, self.step, self.freed)


def validate_depth(num_layers: int) -> None:
    """Raise ConfigError for a depth over which no ladder can be laid."""
    validate_int("num_layers", num_layers, 1)
    if num_layers < 2:
        raise ConfigError(
            f"a ladder needs at least 2 layers with a growing cache, and there is {num_layers}; "
            "try policy='streaming'"
        )


def validate_span(span: int, overlap: int, kind: str) -> None:
    """Raise ConfigError for what is wrong with these values at any depth."""
    validate_int("span", span, 1)
    validate_int("overlap", overlap, 0)
    if overlap >= span:
        remedy = f"overlap={span // 2}" if span > 1 else "span=2 or overlap=0"
        raise ConfigError(f"overlap={overlap} must be below span={span}; try {remedy}")
    if kind not in GEOMETRIES:
        raise ConfigError(
            f"geometry={kind!r} must be one of {', '.join(GEOMETRIES)}; try geometry='interleaved'"
        )


def _frees(num_layers: int, span: int, overlap: int) -> bool:
    step = span - overlap
    return _ceil_div(num_layers - span, step) + 1 > _ceil_div(span, step)


def _nearest_working(num_layers: int, span: int, overlap: int) -> str:
    candidates = (
        (abs(s - span) + abs(o - overlap), s, o)
        for s in range(1, num_layers)
        for o in range(s)
        if _frees(num_layers, s, o)
    )
    _, s, o = min(candidates)
    return f"span={s}, overlap={o}"


def default_span_overlap(num_layers: int) -> tuple[int, int]:
    """Span and overlap for a depth, when the user gives none: works for any depth of two or more.

    Half the layers as span, so that something is always freed, and a step of a fifth of the span,
    the gentle thinning that did best on perplexity in the first measurements (docs/adr/0004).
    """
    validate_depth(num_layers)
    span = num_layers // 2
    return span, span - max(1, span // 5)

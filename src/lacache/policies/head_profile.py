"""Profiles: which KV heads of a model need a long history, as `lacache calibrate` measures it.

Few heads copy from far back; all others do as well with a short window ("retrieval heads",
arXiv 2404.15574). A profile says which, so that a capacity can go where it is needed. It is known
ahead, so what is kept still depends on counts alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lacache.common.files import parse_json
from lacache.common.validation import validate_int
from lacache.errors import ConfigError, InputError

SHIPPED = Path(__file__).parent / "profiles"
"""Profiles that come with the package."""

_FORMAT = 1
_NEEDY_DEPTH = 0.65


@final
@dataclass(frozen=True)
class HeadProfile:
    """Each KV head's need for a long history.

    Layers are counted over those with a growing cache, in order of depth.

    Args:
        fingerprint: of the model's configuration and weights, joined by "-".
        model: its name, for people.
        window: newest tokens that a head without history saw in the probes.
        sinks: first tokens that it saw besides.
        need: per layer and KV head, how much of what windows everywhere cost is lost when this
            head alone has a window: 0 is nothing, 1 as much as windows everywhere. Slightly
            negative where a window helps.
        order: every pair (layer, KV head) once, the neediest first. Not the order of `need`:
            heads stand in for each other, so the order comes from giving windows to more and
            more heads.
        left: pairs (count, loss): the loss on the same scale when the first `count` pairs of
            `order` have everything and all others a window, counts increasing.

    Raises:
        ConfigError: these do not fit together.
    """

    fingerprint: str
    model: str
    window: int
    sinks: int
    need: tuple[tuple[float, ...], ...]
    order: tuple[tuple[int, int], ...]
    left: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        validate_int("window", self.window, 1)
        validate_int("sinks", self.sinks, 0)
        for name in ("fingerprint", "model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{name}={value!r} of a profile must be a text; calibrate again")
        if not self.need or not all(self.need):
            raise ConfigError("need of a profile must hold every layer's heads; calibrate again")
        numbers = [*(value for row in self.need for value in row), *(loss for _, loss in self.left)]
        for number in numbers:
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(f"{number!r} in a profile must be a number; calibrate again")
        pairs = {(layer, head) for layer, row in enumerate(self.need) for head in range(len(row))}
        if len(self.order) != len(pairs) or set(self.order) != pairs:
            raise ConfigError(
                f"order of a profile has {len(self.order)} pairs and must hold each of the "
                f"{len(pairs)} pairs (layer, KV head) of need once; calibrate again"
            )
        counts = [count for count, _ in self.left]
        if counts != sorted(set(counts)) or any(not 0 <= c <= len(pairs) for c in counts):
            raise ConfigError(
                f"counts {counts} of a profile must increase, from 0 to {len(pairs)} at most; "
                "calibrate again"
            )

    @property
    def num_layers(self) -> int:
        """Layers with a growing cache."""
        return len(self.need)

    @property
    def num_heads(self) -> tuple[int, ...]:
        """KV heads of each of these layers."""
        return tuple(len(row) for row in self.need)

    def layers(self) -> tuple[int, ...]:
        """Every layer, the neediest first: by the best place of its heads in the order."""
        return tuple(dict.fromkeys(layer for layer, _ in self.order))

    def matches(self, fingerprint: str) -> bool:
        """Whether these are the very weights that were measured."""
        return self.fingerprint == fingerprint

    def resembles(self, fingerprint: str) -> bool:
        """Whether the configuration is the one measured, whatever the weights.

        Fine-tuned and quantised versions of one model are alike in which heads need history; a
        model trained anew with the same configuration is not.
        """
        return self.fingerprint.split("-")[0] == fingerprint.split("-")[0]


def layers_by_depth(num_layers: int) -> tuple[int, ...]:
    """A guess for a model without a profile: every layer, the likely neediest first.

    Layers near 0.65 of the depth come first. This is a rule of thumb from few models: the
    neediest heads of SmolLM2-135M (30 layers) lie in layers 18, 23 and 17, and the neediest layer
    of a model of 24 layers was 16. It misses what is early (layer 8 of SmolLM2-135M is its
    second), and it says nothing about heads. Calibrate, where that is possible.

    Raises:
        ConfigError: `num_layers` is below 1.
    """
    validate_int("num_layers", num_layers, 1)
    distance = [abs((layer + 0.5) / num_layers - _NEEDY_DEPTH) for layer in range(num_layers)]
    return tuple(sorted(range(num_layers), key=distance.__getitem__))


def profile_json(profile: HeadProfile) -> dict[str, Any]:
    """A profile as what JSON can hold; `parse_profile` is the way back."""
    return {
        "format": _FORMAT,
        "fingerprint": profile.fingerprint,
        "model": profile.model,
        "num_layers": profile.num_layers,
        "num_heads": list(profile.num_heads),
        "window": profile.window,
        "sinks": profile.sinks,
        "need": [list(row) for row in profile.need],
        "order": [list(pair) for pair in profile.order],
        "left": [list(pair) for pair in profile.left],
    }


def parse_profile(content: Any, name: str) -> HeadProfile:
    """The profile in a JSON object.

    Args:
        content: the object.
        name: what to call it in errors.

    Raises:
        InputError: it is none, or of a format that this version does not know.
    """
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(
            f"{name} is not a profile of format {_FORMAT}; make one with lacache calibrate"
        )
    try:
        return HeadProfile(
            fingerprint=content["fingerprint"],
            model=content["model"],
            window=content["window"],
            sinks=content["sinks"],
            need=tuple(tuple(row) for row in content["need"]),
            order=tuple((layer, head) for layer, head in content["order"]),
            left=tuple((count, loss) for count, loss in content["left"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} is a damaged profile ({type(error).__name__}: {error}); make it again with "
            "lacache calibrate"
        ) from error


def read_profile(path: Path) -> HeadProfile:
    """Read a profile from a file.

    Raises:
        InputError: it cannot be read or is not a profile.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the path of a profile"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); calibrate again to replace it") from error
    return parse_profile(content, str(path))


def find_profile(fingerprint: str, folders: Sequence[Path] = ()) -> HeadProfile | None:
    """The profile of a model, or else of one with the same configuration.

    Ask `HeadProfile.matches` which of the two it is.

    Args:
        fingerprint: of the model.
        folders: where to look before the profiles that come with the package.

    Raises:
        InputError: the model's own profile cannot be read.
    """
    found = [
        profile for folder in (*folders, SHIPPED) for profile in _profiles(folder, fingerprint)
    ]
    exact = (profile for profile in found if profile.matches(fingerprint))
    alike = (profile for profile in found if profile.resembles(fingerprint))
    return next(exact, None) or next(alike, None)


def _profiles(folder: Path, fingerprint: str) -> Iterable[HeadProfile]:
    """Those in a folder; what cannot be read matters only where it is the model's own."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield read_profile(path)
        except InputError:
            if path.stem == fingerprint:
                raise

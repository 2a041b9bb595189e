"""Head profiles: which KV heads of a model are retrieval heads, as `lacache calibrate` measures.

Few heads copy from far back ("retrieval heads", arXiv 2404.15574); the streaming heads do as well
with a short window. With a profile a policy gives each head the capacity that it makes use of. The
profile is fixed before a prompt is seen, so what is kept still depends on counts alone.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lacache.common.files import parse_json
from lacache.common.validation import validate_int
from lacache.errors import ConfigError, InputError

SHIPPED = Path(__file__).parent / "profiles"
"""The folder of profiles that ship with the package."""

_FORMAT = 2
_FORMAT_1_NAMES = {"importance": "need", "loss_left": "left"}
_LIKELY_DEPTH = 0.65

_REPLACE = (
    "delete it, or calibrate again to replace it (lacache calibrate --model M, or "
    "lacache.calibrate with again=True)"
)


@final
@dataclass(frozen=True)
class HeadProfile:
    """The importance of a long history for each KV head of a model.

    Layers are counted over those with a growing cache, from the first to the last.

    Args:
        fingerprint: hashes of the model's configuration and weights, joined by "-".
        model: display name of the model.
        window: recent tokens that a streaming head saw in the probes.
        sinks: attention sinks that it saw besides.
        importance: what a window in each KV head costs, by layer, as a share of what windows in
            all heads cost. Negative where a window helps. Shares sum to about 1. Profiles made by
            ablation, such as that of SmolLM2-135M, have the cost when this head alone has a
            window.
        order: every pair (layer, KV head) once, the most important first. In profiles made by
            ablation this is not the order of `importance`: it comes from giving windows to more
            and more heads.
        loss_left: pairs (count, loss): the loss of answers when the first `count` pairs of `order`
            keep all tokens and the other heads have windows, on a scale where 0 is a full cache
            and 1 is windows in all heads. Counts increase.

    Raises:
        ConfigError: the values do not fit together.
    """

    fingerprint: str
    model: str
    window: int
    sinks: int
    importance: tuple[tuple[float, ...], ...]
    order: tuple[tuple[int, int], ...]
    loss_left: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        validate_int("window", self.window, 1)
        validate_int("sinks", self.sinks, 0)
        for name in ("fingerprint", "model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigError(
                    f"{name}={value!r} of a profile must be a string; calibrate again"
                )
        if not self.importance or not all(self.importance):
            raise ConfigError(
                "importance of a profile must hold every layer's heads; calibrate again"
            )
        numbers = [value for row in self.importance for value in row]
        numbers += [loss for _, loss in self.loss_left]
        for number in numbers:
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(f"{number!r} in a profile must be a number; calibrate again")
        pairs = {(layer, head) for layer, n in enumerate(self.num_heads) for head in range(n)}
        if len(self.order) != len(pairs) or set(self.order) != pairs:
            raise ConfigError(
                f"order of a profile has {len(self.order)} pairs and must hold each of the "
                f"{len(pairs)} pairs (layer, KV head) of importance once; calibrate again"
            )
        counts = [count for count, _ in self.loss_left]
        if counts != sorted(set(counts)) or any(not 0 <= c <= len(pairs) for c in counts):
            raise ConfigError(
                f"counts {counts} of a profile must increase, from 0 to {len(pairs)} at most; "
                "calibrate again"
            )

    @property
    def num_layers(self) -> int:
        """Number of layers with a growing cache."""
        return len(self.importance)

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Number of KV heads of each of these layers."""
        return tuple(len(row) for row in self.importance)

    def layers(self) -> tuple[int, ...]:
        """Return every layer, the most important first, by its first head in `order`."""
        return tuple(dict.fromkeys(layer for layer, _ in self.order))

    def heads_that_leave(self, loss: float) -> int:
        """Return how many heads of `order` must keep all tokens to leave at most this loss.

        Args:
            loss: below 1, on the scale of `loss_left`, between whose pairs it is linear.
        """
        points = [(0, 1.0), *self.loss_left, (len(self.order), 0.0)]
        for (few, high), (many, low) in itertools.pairwise(points):
            if low <= loss < high:
                return few + math.ceil((many - few) * (high - loss) / (high - low))
        return len(self.order)

    def matches(self, fingerprint: str) -> bool:
        """Return whether a model has exactly the measured configuration and weights."""
        return self.fingerprint == fingerprint

    def resembles(self, fingerprint: str) -> bool:
        """Return whether a model has the measured configuration, with any weights.

        Fine-tuned and quantised versions of one model share their retrieval heads; a
        model trained anew with the same configuration is not.
        """
        return self.fingerprint.split("-")[0] == fingerprint.split("-")[0]


def layers_by_depth(num_layers: int) -> tuple[int, ...]:
    """Guess the order of layers by importance for a model without a profile.

    Layers near 0.65 of the depth come first. This is a rule of thumb from few models: the most
    important heads of SmolLM2-135M (30 layers) lie in layers 18, 23 and 17, and the most important
    layer of a model of 24 layers was 16. It misses early layers (layer 8 of SmolLM2-135M is its
    second), and cannot tell the heads of a layer apart. Calibrate where that is possible.

    Raises:
        ConfigError: `num_layers` is below 1.
    """
    validate_int("num_layers", num_layers, 1)
    distance = [abs((layer + 0.5) / num_layers - _LIKELY_DEPTH) for layer in range(num_layers)]
    return tuple(sorted(range(num_layers), key=distance.__getitem__))


def profile_json(profile: HeadProfile) -> dict[str, Any]:
    """Return a profile as plain JSON; `parse_profile` is the inverse."""
    return {
        "format": _FORMAT,
        "fingerprint": profile.fingerprint,
        "model": profile.model,
        "num_layers": profile.num_layers,
        "num_heads": list(profile.num_heads),
        "window": profile.window,
        "sinks": profile.sinks,
        "importance": [list(row) for row in profile.importance],
        "order": [list(pair) for pair in profile.order],
        "loss_left": [list(pair) for pair in profile.loss_left],
    }


def parse_profile(content: Any, name: str) -> HeadProfile:
    """Build a profile from a JSON object of format 2, or of format 1, which used other names.

    Args:
        content: the object.
        name: what to call it in errors.

    Raises:
        InputError: the object is not a profile, or of a format that this version does not read.
    """
    version = content.get("format") if isinstance(content, dict) else None
    if version not in (1, _FORMAT):
        raise InputError(
            f"{name} is not a profile of format {_FORMAT}; make one with lacache calibrate"
        )
    if version == 1:
        content = content | {
            new: content[old] for new, old in _FORMAT_1_NAMES.items() if old in content
        }
    try:
        profile = HeadProfile(
            fingerprint=content["fingerprint"],
            model=content["model"],
            window=content["window"],
            sinks=content["sinks"],
            importance=tuple(tuple(row) for row in content["importance"]),
            order=tuple((layer, head) for layer, head in content["order"]),
            loss_left=tuple((count, loss) for count, loss in content["loss_left"]),
        )
        for key, value in (("num_layers", profile.num_layers), ("num_heads", [*profile.num_heads])):
            if content.get(key, value) != value:
                raise ConfigError(f"{key}={content[key]} must be {value}, as importance has it")
        return profile
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} is a damaged profile ({type(error).__name__}: {error}); {_REPLACE}"
        ) from error


def read_profile(path: Path) -> HeadProfile:
    """Read a profile from a file.

    Raises:
        InputError: the file cannot be read or is not a profile.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the path of a profile"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {_REPLACE}") from error
    return parse_profile(content, str(path))


def find_profile(fingerprint: str, folders: Sequence[Path] = ()) -> HeadProfile | None:
    """Find the profile of a model, or else of another model with the same configuration.

    `HeadProfile.matches` distinguishes the two.

    Args:
        fingerprint: the model's.
        folders: searched before the profiles that ship with the package.

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
    """Yield a folder's readable profiles; only the model's own must be readable."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield read_profile(path)
        except InputError:
            if path.stem == fingerprint:
                raise

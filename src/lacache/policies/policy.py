"""Policies: frozen objects whose fields are their settings, bound to a model and a capacity.

A policy has no sizes. How many tokens a cache may hold comes from the budget, depth and
KV heads from the model, importance of heads from its profile; `bind` brings them together.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.head_profile import HeadProfile
from lacache.policies.schedule import POSITIONS, Schedule

SINKS = 4
"""Attention sinks, where the user gives no number (StreamingLLM, arXiv 2309.17453)."""

EVICT_BATCH = 0.125
"""Share of the capacity that one compaction frees, where the user gives none."""

DEFAULT_POSITIONS = "original"
"""Default of the setting `positions`."""

_AMPLE = 1 << 40
"""A capacity that no model fills: what fails with it fails with every one."""


@final
@dataclass(frozen=True)
class ModelShape:
    """The shape of a model: all that a policy depends on.

    Args:
        num_heads: KV heads of each layer with a growing cache, in order of depth.
        profile: importance of its KV heads, where one was measured.
    """

    num_heads: tuple[int, ...]
    profile: HeadProfile | None = None

    @classmethod
    def of_layers(cls, num_layers: int) -> "ModelShape":
        """Return the shape of a model with one KV head in each layer."""
        return cls((1,) * num_layers)

    @property
    def num_layers(self) -> int:
        """Layers with a growing cache."""
        return len(self.num_heads)


@final
@dataclass(frozen=True)
class BoundGroup:
    """KV heads that share one schedule, in a model.

    Args:
        schedule: over the layers of the group.
        heads: per layer, which of its KV heads are in the group; both in increasing order.
        policy: that the schedule follows.
    """

    schedule: Schedule
    heads: Mapping[int, tuple[int, ...]]
    policy: "LayerPolicy"

    def pattern(self, layer: int) -> int:
        """Return the pattern of a layer in the group's schedule."""
        return self.schedule.patterns[list(self.heads).index(layer)]

    @property
    def num_heads(self) -> int:
        """KV heads over all layers of the group."""
        return sum(len(heads) for heads in self.heads.values())


@dataclass(frozen=True)
class Policy(ABC):
    """Which tokens a cache keeps. Subclasses are frozen dataclasses that validate themselves.

    `str(policy)` is the text that `parse_policy` reads: `ladder:span=15:overlap=0`.
    """

    names: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Names of the text form. Each stands for the class with these settings; mostly one, `{}`."""
    takes_budget: ClassVar[bool] = True
    """Whether the capacity comes from a budget; else the policy is unbounded or has its own."""

    @property
    def needs_profile(self) -> bool:
        """Whether `bind` looks at the model's head profile."""
        return False

    @abstractmethod
    def bind(self, shape: ModelShape, capacity: int) -> tuple[BoundGroup, ...]:
        """Return the groups of KV heads and their schedules in a model.

        Args:
            shape: of the model.
            capacity: tokens per layer, averaged over KV heads; UNBOUNDED where the policy takes
                no budget.

        Raises:
            ConfigError: the policy cannot work for this model or capacity.
        """

    def smallest_capacity(self, shape: ModelShape) -> int:
        """Return the least capacity that works, in tokens, by bisection.

        Raises:
            ConfigError: none does.
        """
        self.bind(shape, _AMPLE)
        low, high = 0, 1
        while not self._works(shape, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._works(shape, middle) else (middle, high)
        return high

    def with_sinks(self, sinks: int) -> Self:
        """Return this policy with at least `sinks` attention sinks, such as a system prompt's."""
        settings = {"sinks"} & {f.name for f in fields(self)}
        changes = {name: max(getattr(self, name), sinks) for name in settings}
        return replace(self, **changes)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, all_settings: bool = False) -> str:
        """Return the text form.

        Args:
            all_settings: write defaults too, which another version may change.
        """
        variants = (self._differing(name) for name in self.names)
        name, settings = min(
            (v for v in variants if None not in v[1].values()), key=lambda v: len(v[1])
        )
        if all_settings:
            own = {f.name: getattr(self, f.name) for f in fields(self)}
            settings = {key: value for key, value in own.items() if value not in (None, ())}
        formats = {f.name: f.metadata.get("format", str) for f in fields(self)}
        return ":".join([name, *(f"{key}={formats[key](v)}" for key, v in settings.items())])

    def _differing(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return a name, and the settings that differ from those that it stands for."""
        known = {f.name: f.default for f in fields(self)} | dict(self.names[name])
        own = {key: getattr(self, key) for key in known}
        return name, {key: value for key, value in own.items() if value != known[key]}

    def _works(self, shape: ModelShape, capacity: int) -> bool:
        try:
            self.bind(shape, capacity)
        except ConfigError:
            return False
        return True


class LayerPolicy(Policy, ABC):
    """A policy with one schedule, for all KV heads of all layers."""

    @abstractmethod
    def schedule(self, num_layers: int, capacity: int) -> Schedule:
        """Return the schedule over layers with a growing cache.

        Args:
            num_layers: how many there are.
            capacity: most tokens that a layer ever holds, the newest included.

        Raises:
            ConfigError: the policy cannot work at that depth or capacity.
        """

    def resolved(self, num_layers: int, capacity: int) -> "LayerPolicy":
        """Return a policy with the same schedule, and every setting given in slots and layers."""
        return self

    def with_evict_batch(self, evict_batch: int, num_layers: int, capacity: int) -> "LayerPolicy":
        """Return a policy with this number of slots that a compaction frees.

        Args:
            evict_batch: in slots.
            num_layers: of the schedule, for settings that follow from it.
            capacity: of the schedule, likewise.
        """
        if "evict_batch" not in {f.name for f in fields(self)}:
            return self
        changes: dict[str, Any] = {"evict_batch": evict_batch}
        return replace(self, **changes)

    def bind(self, shape: ModelShape, capacity: int) -> tuple[BoundGroup, ...]:
        """Return one group of all KV heads."""
        heads = {layer: tuple(range(n)) for layer, n in enumerate(shape.num_heads)}
        return (BoundGroup(self.schedule(shape.num_layers, capacity), heads, self),)


def validate_slots(name: str, value: object, least: int) -> None:
    """Refuse what is neither a number of slots nor a share of the capacity.

    Args:
        name: of the setting.
        value: an int is slots, a float in (0, 1) a share.
        least: slots that there must be.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, float):
        if not 0.0 < value < 1.0:
            raise ConfigError(
                f"{name}={value} as a share of the capacity must be in (0, 1); try {name}=0.1, or "
                f"{name}=64 for slots"
            )
        return
    validate_int(name, value, least)


def validate_positions(value: object) -> None:
    """Raise ConfigError unless `value` is one of POSITIONS."""
    if value not in POSITIONS:
        raise ConfigError(
            f"positions={value!r} must be 'original' or 'slots'; try positions=original"
        )


def in_slots(value: float, capacity: int, *, least: int = 1, most: int | None = None) -> int:
    """Return a setting in slots: an int as it is, a share of the capacity rounded down.

    Args:
        value: slots, or a share.
        capacity: in tokens.
        least: what a share is never rounded below.
        most: what a share is cut to.
    """
    if isinstance(value, int):
        return value
    # A share such as 0.29 times 100 is a little below 29 in floating point.
    slots = math.floor(value * capacity + 1e-9)
    return max(least, slots if most is None else min(slots, most))

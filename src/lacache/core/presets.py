"""Presets: plans by name, chosen by measurement (docs/quality.md)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from lacache.core.budget import Budget, parse_budget
from lacache.core.errors import ConfigError
from lacache.core.geometry import Geometry, default_span_overlap
from lacache.core.history import HistoryConfig
from lacache.core.ladder import LadderConfig
from lacache.core.profile import Profile, layers_by_depth
from lacache.core.resolve import PolicySource
from lacache.core.schedule import Plan

DEFAULT_PRESET = "balanced"

SINKS = 4

_AMPLE = 1 << 40
"""A capacity that no model fills: what fails with it fails with every one."""

_MOST = 0.5
"""More heads than these with a history leave too few bytes to the others' windows."""


@final
@dataclass(frozen=True)
class Preset:
    """A plan for any budget and model.

    Args:
        about: what it is for, in one line.
        share: of the KV heads, how many keep a long history; none makes a ladder of all layers.
            Where the length of the prompt is known, as many as can hold the whole of it.
        window: capacity of the other heads, as a share of the whole.
        guess: without a profile of the model, guess the layers by their depth; else a ladder of
            all layers takes the place of the history.
    """

    about: str
    share: float = 0.0
    window: float = 0.0
    guess: bool = False


PRESETS: dict[str, Preset] = {
    "balanced": Preset("nothing is lost before the budget is full"),
    "local": Preset("what matters is near: chat, prose", share=0.1, window=0.85),
    "global": Preset("finding what is far back", share=0.16, window=0.3, guess=True),
    "paper": Preset("the paper's ladder, as the released code runs it"),
}


def preset_plan(
    name: str,
    capacity: int,
    num_heads: Sequence[int],
    profile: Profile | None,
    *,
    sinks: int = SINKS,
    prompt_tokens: int = 0,
) -> Plan:
    """The plan of a preset.

    Args:
        name: of the preset.
        capacity: tokens per layer, averaged over KV heads.
        num_heads: KV heads of each layer with a growing cache.
        profile: of the model, if it has one.
        sinks: first tokens, never evicted.
        prompt_tokens: length of the prompt that the capacity is a share of; 0 where it is not.

    Raises:
        ConfigError: no such preset, or the capacity is too small for it.
    """
    preset = _find(name)
    num_layers = len(num_heads)
    if name == "paper":
        span = max(1, num_layers // 2)
        freed = Geometry(num_layers, span, 0).freed
        recent = num_layers + 1 - freed
        return LadderConfig(capacity=capacity, span=span, sinks=sinks, recent=recent)
    if preset.share and (profile is not None or preset.guess):
        refill = max(1, int(preset.window * capacity) // 8)
        share, window = _split(preset, capacity, prompt_tokens, refill)
        return HistoryConfig(
            capacity=capacity,
            history=_neediest(share, num_layers, profile),
            window=window,
            sinks=sinks,
            refill=refill,
        )
    span, overlap = default_span_overlap(num_layers)
    refill = max(1, capacity // 8)
    return LadderConfig(capacity=capacity, span=span, overlap=overlap, sinks=sinks, refill=refill)


def preset_source(
    name: str,
    budget: Budget | None,
    *,
    num_heads: Sequence[int],
    bytes_per_token: int,
    profile: Profile | None,
    sinks: int = SINKS,
) -> PolicySource:
    """The plan of a preset for a budget, given the number of tokens of the first prompt.

    Raises:
        ConfigError: no such preset, no budget, or one that the preset cannot work with.
    """
    _find(name)
    if budget is None:
        raise ConfigError("no budget was given; try budget=512, 0.5 (share) or '64MiB'")
    parsed = parse_budget(budget)

    def plan(capacity: int, prompt_tokens: int = 0) -> Plan:
        return preset_plan(
            name, capacity, num_heads, profile, sinks=sinks, prompt_tokens=prompt_tokens
        )

    smallest = _smallest(plan, num_heads)
    if parsed.share:
        # Of a prompt as long as the capacity, the most heads get a history.
        smallest = max(smallest, _smallest(lambda tokens: plan(tokens, tokens), num_heads))
    if parsed.tokens and parsed.tokens < smallest:
        raise ConfigError(
            f"budget={parsed.tokens} must be at least {smallest} tokens for preset {name!r} of "
            f"this model; try budget={smallest}"
        )

    def for_prompt(num_tokens: int) -> Plan:
        capacity = parsed.capacity(
            bytes_per_token=bytes_per_token, prompt_tokens=num_tokens, smallest=smallest
        )
        return plan(capacity, num_tokens if parsed.share else 0)

    return for_prompt


def _find(name: str) -> Preset:
    if name not in PRESETS:
        raise ConfigError(f"preset={name!r} must be one of {', '.join(PRESETS)}; try 'balanced'")
    return PRESETS[name]


def _split(preset: Preset, capacity: int, prompt_tokens: int, refill: int) -> tuple[float, float]:
    """How many of the KV heads keep a history, and the window of the others, as shares.

    Where the prompt's length is known, so many heads that it fits, and what is left over beyond
    the most heads goes to the windows.
    """
    # The answer needs room too.
    needed = prompt_tokens + refill
    window = preset.window * capacity
    if not prompt_tokens or needed <= capacity:
        return preset.share, preset.window
    share = (capacity - window) / (needed - window)
    if share <= _MOST:
        return share, preset.window
    return _MOST, (capacity - _MOST * needed) / (1 - _MOST) / capacity


def _neediest(
    share: float, num_layers: int, profile: Profile | None
) -> tuple[tuple[int, int], ...] | tuple[int, ...]:
    if profile is not None:
        return profile.order[: max(1, int(share * len(profile.order)))]
    return layers_by_depth(num_layers)[: max(1, int(share * num_layers))]


def _smallest(plan: Callable[[int], Plan], num_heads: Sequence[int]) -> int:
    """The least capacity that works, by bisection.

    Raises:
        ConfigError: none does.
    """
    plan(_AMPLE).bind_groups(num_heads)

    def works(capacity: int) -> bool:
        try:
            plan(capacity).bind_groups(num_heads)
        except ConfigError:
            return False
        return True

    low, high = 0, 1
    while not works(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high

"""Presets: plans by name, chosen by measurement (docs/quality.md)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

from lacache.errors import ConfigError
from lacache.policies.budget import Budget, parse_budget
from lacache.policies.geometry import Geometry, default_span_overlap
from lacache.policies.head_profile import HeadProfile, layers_by_depth
from lacache.policies.ladder import Ladder
from lacache.policies.resolve import PolicySource
from lacache.policies.retrieval_heads import RetrievalHeads, split_by_need
from lacache.policies.schedule import Plan

DEFAULT_PRESET = "balanced"

SINKS = 4

_EVICT_BATCH = 10
"""Of so many slots one compaction frees one, so that long prompts are read in long segments."""

_AMPLE = 1 << 40
"""A capacity that no model fills: what fails with it fails with every one."""


@final
@dataclass(frozen=True)
class Preset:
    """A plan for any budget and model.

    Args:
        about: what it is for, in one line.
        share: of the KV heads, how many keep a long history; none makes a ladder of all layers.
        most: share of the heads in history and tiers, see RetrievalHeads and `split_by_need`.
        window: capacity of the other heads in the end, as a share of the whole.
        guess: without a profile of the model, guess the layers by their depth; else a ladder of
            all layers takes the place of the history.
    """

    about: str
    share: float = 0.0
    most: float = 0.0
    window: float = 0.0
    guess: bool = False


PRESETS: dict[str, Preset] = {
    "balanced": Preset("prose and recall alike", share=0.07, most=0.3, window=0.75),
    "local": Preset("what matters is near: chat, prose", share=0.1, window=0.85),
    "global": Preset("finding what is far back", share=0.1, most=0.3, window=0.25, guess=True),
    "paper": Preset("the paper's ladder, as the released code runs it"),
}


def preset_plan(
    name: str,
    capacity: int,
    num_heads: Sequence[int],
    profile: HeadProfile | None,
    *,
    sinks: int = SINKS,
) -> Plan:
    """The plan of a preset.

    Args:
        name: of the preset.
        capacity: tokens per layer, averaged over KV heads.
        num_heads: KV heads of each layer with a growing cache.
        profile: of the model, if it has one.
        sinks: first tokens, never evicted.

    Raises:
        ConfigError: no such preset, or the capacity is too small for it.
    """
    preset = _find(name)
    num_layers = len(num_heads)
    if name == "paper":
        span = max(1, num_layers // 2)
        freed = Geometry(num_layers, span, 0).freed
        recent = num_layers + 1 - freed
        return Ladder(capacity=capacity, span=span, sinks=sinks, recent=recent)
    if preset.share and (profile is not None or preset.guess):
        # Checked with the windows: what they hold must not end below one evict_batch.
        evict_batch = min(capacity // _EVICT_BATCH, int(preset.window * capacity) - sinks)
        order = layers_by_depth(num_layers) if profile is None else profile.order
        history, *tiers = split_by_need(order, preset.share, preset.most)
        return RetrievalHeads(
            capacity=capacity,
            history=history,
            tiers=tuple(tiers),
            window=preset.window,
            sinks=sinks,
            evict_batch=max(1, evict_batch),
        )
    span, overlap = default_span_overlap(num_layers)
    return Ladder(
        capacity=capacity,
        span=span,
        overlap=overlap,
        sinks=sinks,
        evict_batch=max(1, capacity // _EVICT_BATCH),
    )


def preset_source(
    name: str,
    budget: Budget | None,
    *,
    num_heads: Sequence[int],
    bytes_per_token: int,
    profile: HeadProfile | None,
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

    def plan(capacity: int) -> Plan:
        return preset_plan(name, capacity, num_heads, profile, sinks=sinks)

    smallest = _smallest(plan, num_heads)
    if parsed.tokens and parsed.tokens < smallest:
        raise ConfigError(
            f"budget={parsed.tokens} must be at least {smallest} tokens for preset {name!r} of "
            f"this model; try budget={smallest}"
        )

    def for_prompt(num_tokens: int) -> Plan:
        capacity = parsed.capacity(
            bytes_per_token=bytes_per_token, prompt_tokens=num_tokens, smallest=smallest
        )
        return plan(capacity)

    return for_prompt


def refuse_beside_preset(
    preset: str, policy: str | None, options: Iterable[str], config: object = None
) -> None:
    """Refuse what a preset decides by itself.

    Args:
        preset: by name.
        policy: by name.
        options: names of a policy's options that were given, the sinks left out.
        config: a plan; anything else is no matter.

    Raises:
        ConfigError: no such preset, or something was given beside it.
    """
    _find(preset)
    given = [*options, *(["policy"] if policy is not None else [])]
    if isinstance(config, Plan):
        given.append(type(config).__name__)
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be given beside preset={preset!r}; leave one of them out"
        )


def _find(name: str) -> Preset:
    if name not in PRESETS:
        raise ConfigError(f"preset={name!r} must be one of {', '.join(PRESETS)}; try 'balanced'")
    return PRESETS[name]


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

"""The settings of a search, and its result as plain JSON for tables and plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from lacache.common.records import Record, environment
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.tuning.objectives import Excerpt, against, figures, pareto_front
from lacache.evals.tuning.split import Part
from lacache.policies import Full, Policy, Streaming

FULL: Policy = Full()
STREAMING: Policy = Streaming()

TOLERANCE = 1.003
"""How much higher than StreamingLLM's a perplexity may be and still count as no worse."""

RULES = {
    "text": "least perplexity",
    "recall": "least loss of the answers about needles",
    "both": (
        "least loss of the answers among those whose perplexity is not clearly above "
        f"{TOLERANCE} × StreamingLLM's"
    ),
}
"""By goal, what a recommendation goes by; all figures are those for comparing. A perplexity is
clearly above where the whole interval of the ratio is."""

FEWEST_CLEAR = 5
"""So many excerpts lie on one side of a border by chance once in sixteen times."""

_DIGITS = 5


def validate_minutes(minutes: float) -> None:
    """Raise ConfigError unless `minutes` is positive and finite."""
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes} must be above 0 and finite; try --minutes 10")


@final
@dataclass(frozen=True)
class Settings:
    """The settings of a search, besides the model and the text.

    Args:
        capacity: tokens per layer, the same for all candidates.
        length: tokens of an excerpt, above the capacity.
        minutes: of measuring, all starts of the same search together.

    Raises:
        ConfigError: a value out of range, or a cache that an excerpt does not fill.
    """

    capacity: int
    length: int
    minutes: float

    def __post_init__(self) -> None:
        validate_int("capacity", self.capacity, 1)
        validate_int("length", self.length, 2)
        validate_minutes(self.minutes)
        if self.length <= self.capacity:
            raise ConfigError(
                f"length={self.length} must be above the capacity {self.capacity}, else nothing "
                f"is ever evicted; try --length {4 * self.capacity}"
            )


@final
@dataclass(frozen=True)
class Found:
    """The result of a search."""

    compared: Mapping[Policy, Sequence[Excerpt]]
    """What was measured for comparing; StreamingLLM is among the policies, the full cache not."""
    finalists: tuple[Policy, ...]
    """Those that were compared on all of it, the best first."""
    front: tuple[Policy, ...]
    """The Pareto front among them, by perplexity."""
    recommended: Mapping[str, Policy]
    """By goal, a key of RULES."""
    held_out: Mapping[Policy, Sequence[Excerpt]]
    """Winners, StreamingLLM and the full cache on the held-out part."""
    failed: Mapping[Policy, str]
    untried: tuple[Policy, ...]
    """Those for which the time did not suffice."""
    seconds: float
    """Time of all runs."""


def recommend(
    points: Mapping[Policy, tuple[float, float]], ratios: Mapping[Policy, float]
) -> dict[str, Policy]:
    """Choose the best policy for each goal; of equal ones the one that is better otherwise.

    Args:
        points: perplexity and loss of each policy of the front.
        ratios: by policy, the low end of the interval of its perplexity over StreamingLLM's.
    """
    good = [policy for policy in points if ratios[policy] <= TOLERANCE]
    return {
        "text": min(points, key=lambda p: points[p]),
        "recall": min(points, key=lambda p: points[p][::-1]),
        "both": min(good, key=lambda p: points[p][::-1]),
    }


def tuning_record(
    found: Found, settings: Settings, parts: tuple[Part, Part], *, budget: str, model: str
) -> Record:
    """Return all figures of a search.

    Args:
        found: its result.
        settings: what it was given.
        parts: of the text.
        budget: as the user gave it.
        model: its name.

    Returns:
        Rows for all policies: `compared` is on the part that was chosen on, over as many excerpts
        as the policy reached, `held_out` on the other one, None where a policy was not measured
        there; `..._against` is the same against StreamingLLM, token by token and needle by needle.
        `on_front` is whether no other policy beats it there.
    """
    # Without the full cache, which has more bytes.
    ends = [policy for policy in found.held_out if policy != FULL]
    points = [figures(found.held_out[policy]).point for policy in ends]
    held_out_front = [ends[i] for i in pareto_front(points)]
    policies = [*found.finalists, *(p for p in found.compared if p not in found.finalists), FULL]
    return {
        "kind": "tune",
        "model": model,
        "text": parts[0].text,
        "parts": [asdict(part) for part in parts],
        "prefill": "chunked",
        "budget": budget,
        **asdict(settings),
        "recommended": {goal: str(policy) for goal, policy in found.recommended.items()},
        "rules": RULES,
        "front": [str(policy) for policy in found.front],
        "policies": [
            {
                "policy": str(policy),
                "name": str(policy).partition(":")[0],
                "is_finalist": policy in found.finalists,
                **_figures("compared", found.compared, policy),
                **_figures("held_out", found.held_out, policy),
                "on_front": {
                    "compared": policy in found.front,
                    "held_out": policy in held_out_front,
                },
            }
            for policy in policies
        ],
        "failed": {str(policy): error for policy, error in found.failed.items()},
        "untried": [str(policy) for policy in found.untried],
        "seconds": round(found.seconds, 1),
        "environment": environment(),
    }


def verdict(relative: Record) -> dict[str, str]:
    """Return what the intervals of `..._against` show: "lower", "higher" or "not clear".

    Over fewer than `FEWEST_CLEAR` excerpts, which chance alone often puts on one side, the loss is
    never clear.
    """
    few = relative["excerpts"] < FEWEST_CLEAR
    return {
        "perplexity": _side(relative["ratio_interval"], 1.0),
        "loss": "not clear" if few else _side(relative["loss_interval"], 0.0),
    }


def _figures(name: str, measured: Mapping[Policy, Sequence[Excerpt]], policy: Policy) -> Record:
    mine = measured.get(policy)
    if not mine:
        return {name: None, f"{name}_against": None}
    others = measured[STREAMING][: len(mine)]
    return {
        name: _rounded(asdict(figures(mine))),
        f"{name}_against": _rounded(asdict(against(mine, others))),
    }


def _side(interval: Sequence[float], border: float) -> str:
    low, high = interval
    if high < border:
        return "lower"
    return "higher" if low > border else "not clear"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_rounded(item) for item in value]
    return round(value, _DIGITS) if isinstance(value, float) else value

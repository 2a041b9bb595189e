"""The result of a search as plain JSON, for tables and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lacache.common.records import Record, environment
from lacache.evals.tuning.found import FULL, STREAMING, TOLERANCE, Found, Settings
from lacache.evals.tuning.objectives import Excerpt, against, figures, pareto_front
from lacache.evals.tuning.split import Part
from lacache.policies import Policy

RULES = {
    "text": "least perplexity",
    "recall": "least loss of the answers about needles",
    "both": (
        "least loss of the answers among those whose perplexity is not clearly above "
        f"{TOLERANCE} × StreamingLLM's"
    ),
}
"""By goal, what a recommendation goes by; all figures are those for comparing."""

FEWEST_CLEAR = 5
"""So many excerpts lie on one side of a border by chance once in sixteen times."""

_DIGITS = 5


def tuning_record(
    found: Found,
    settings: Settings,
    parts: tuple[Part, Part],
    *,
    budget: str,
    model: str,
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
    best = {goal: getattr(found.recommended, goal) for goal in RULES}
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
        "recommended": {goal: str(policy) for goal, policy in best.items()},
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

"""What a search has found, as plain JSON, for tables and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lacache.common.records import Record, environment
from lacache.evals.methods.method import Method
from lacache.evals.specs import format_spec
from lacache.evals.tuning.found import TOLERANCE, Found
from lacache.evals.tuning.objectives import Stretch, against, figures
from lacache.evals.tuning.pareto import front
from lacache.evals.tuning.search import FULL, STREAMING
from lacache.evals.tuning.settings import Settings
from lacache.evals.tuning.split import Part
from lacache.policies.plan_record import plan_record
from lacache.policies.schedule import Plan

RULES = {
    "text": "least perplexity",
    "recall": "least loss of the answers about needles",
    "both": (
        "least loss of the answers among those whose perplexity is not clearly above "
        f"{TOLERANCE} × StreamingLLM's"
    ),
}
"""By wish, what a recommendation goes by; all figures are those for comparing."""

FEWEST_CLEAR = 5
"""So many stretches lie on one side of a border by chance once in sixteen times."""

_DIGITS = 5


def tuning_record(
    found: Found,
    settings: Settings,
    parts: tuple[Part, Part],
    *,
    budget: str,
    model: str,
    plans: Mapping[str, Plan],
) -> Record:
    """All figures of a search.

    Args:
        found: what it has found.
        settings: what it was given.
        parts: of the text.
        budget: as the user said it.
        model: its name.
        plans: by wish, what the recommended method keeps.

    Returns:
        Rows for all methods: `compared` is on the part that was chosen on, with as many stretches
        as the method was in the search for, `held_out` on the other one, None where a method was
        not measured there; `..._against` is the same against StreamingLLM, token by token and
        needle by needle. `on_front` says whether no other method beats it there.
    """
    best = {wish: getattr(found.recommended, wish) for wish in RULES}
    ends = _front_of(found.held_out)
    methods = [*found.finalists, *(m for m in found.compared if m not in found.finalists), FULL]
    return {
        "kind": "tune",
        "model": model,
        "text": parts[0].text,
        "parts": [asdict(part) for part in parts],
        "protocol": "strict",
        "budget": budget,
        **asdict(settings),
        "recommended": {wish: _spec(method) for wish, method in best.items()},
        "rules": RULES,
        "plans": {wish: plan_record(plan) for wish, plan in plans.items()},
        "front": [_spec(method) for method in found.front],
        "methods": [
            {
                "method": _spec(method),
                "name": method.name,
                "is_finalist": method in found.finalists,
                **_figures("compared", found.compared, method),
                **_figures("held_out", found.held_out, method),
                "on_front": {"compared": method in found.front, "held_out": method in ends},
            }
            for method in methods
        ],
        "failed": {_spec(method): told for method, told in found.failed.items()},
        "untried": [_spec(method) for method in found.untried],
        "seconds": round(found.seconds, 1),
        "environment": environment(),
    }


def verdict(relative: Record) -> dict[str, str]:
    """What the intervals of `..._against` say: "lower", "higher" or "not clear".

    Of fewer than `FEWEST_CLEAR` stretches, which chance alone often puts on one side, the loss is
    never clear.
    """
    few = relative["stretches"] < FEWEST_CLEAR
    return {
        "perplexity": _side(relative["ratio_interval"], 1.0),
        "loss": "not clear" if few else _side(relative["loss_interval"], 0.0),
    }


def _front_of(read: Mapping[Method, Sequence[Stretch]]) -> list[Method]:
    """Without the full cache, which has more bytes."""
    methods = [method for method in read if method != FULL]
    return [methods[i] for i in front([figures(read[method]).point for method in methods])]


def _figures(name: str, read: Mapping[Method, Sequence[Stretch]], method: Method) -> Record:
    mine = read.get(method)
    if not mine:
        return {name: None, f"{name}_against": None}
    others = read[STREAMING][: len(mine)]
    return {
        name: _rounded(asdict(figures(mine))),
        f"{name}_against": _rounded(asdict(against(mine, others))),
    }


def _spec(method: Method) -> str:
    return format_spec(method.name, method)


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

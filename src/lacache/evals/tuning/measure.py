"""Runs of a search, from a model or from a file of records."""

from collections.abc import Callable
from pathlib import Path

from lacache.evals.campaign import Outcome, run_all
from lacache.evals.runs import Bench, RunSpec
from lacache.evals.tuning.search import Measure


def measuring(
    bench: Bench,
    path: Path,
    *,
    on_start: Callable[[RunSpec], None] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Measure:
    """What makes a run's record, or finds it in a file of JSON lines where it is kept.

    Args:
        bench: the model.
        path: the file; created if missing.
        on_start: called before each run that is not there yet.
        on_tokens: called with the number of tokens after each forward.

    Returns:
        A function that raises InputError if the file cannot be used.
    """

    def measure(spec: RunSpec) -> Outcome:
        (outcome,) = run_all(bench, [spec], path, on_start=on_start, on_tokens=on_tokens)
        return outcome

    return measure

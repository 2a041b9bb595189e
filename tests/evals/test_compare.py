import random
from typing import Any

import pytest

from lacache.common.records import Record
from lacache.errors import InputError
from lacache.evals.compare import compare, conclusions

TOKENS = 4096
BOTH = [("streaming", "S", 0.0), ("ladder", "A", -0.1)]


def run(name: str, label: str, add: float = 0.0, late: float = 0.0, **changes: Any) -> Record:
    """A made-up run: common scores, plus `add` from token 512 and `late` in the last 1024."""
    noise = random.Random(7)
    scores = [noise.gauss(3, 1) for _ in range(TOKENS - 1)]
    own = random.Random(label)
    nll = [
        x + (add + own.gauss(0, 0.1) * (add != 0) if t >= 512 else 0) + late * (t >= TOKENS - 1024)
        for t, x in enumerate(scores, 1)
    ]
    mean = sum(nll) / len(nll)
    return {
        "kind": "ppl",
        "label": label,
        "policy": {"name": name},
        "capacity": None if name == "full" else 512,
        "model": {"name": "m", "trained_context": 3000},
        "task": {"name": "ppl", "text": "t", "start": 0},
        "samples_sha256": "same",
        "length": TOKENS,
        "nll": nll,
        "perplexity": 2.718281828**mean,
        "peak_bytes": 900 * 2**20 if name == "full" else 100 * 2**20,
        "mean_bytes": 450 * 2**20 if name == "full" else 90 * 2**20,
        "tokens_per_second": 100.0,
        **changes,
    }


def said(records: list[Record]) -> str:
    return "\n".join(conclusions(records))


def test_the_winner_follows_the_numbers() -> None:
    worse, better = run("ladder", "A", 0.1), run("ladder", "A", -0.1)
    base = run("streaming", "S")
    assert "S wins on perplexity" in said([base, worse])
    assert "S is lowest" in said([base, worse])
    assert "A wins on perplexity" in said([base, better])
    assert "A is lowest" in said([base, better])


def test_ties_are_said() -> None:
    base = run("streaming", "S")
    same = said([base, run("ladder", "A")])
    assert "A against S on tokens from 512 on: the same perplexity." in same
    assert "(a tie)" in same
    near = said([base, run("ladder", "A", 1e-9)])
    assert "no clear winner" in near
    rows = compare([base, run("ladder", "A")])
    assert all(row.best == ("S", "A") for row in rows)


def test_a_verdict_names_the_difference_its_error_and_the_rule() -> None:
    base = run("streaming", "S")
    told = said([base, run("ladder", "A", -0.1)])
    assert "A against S on tokens from 512 on: perplexity 9.5" in told
    assert " % lower, standard error " in told
    assert "; above two standard errors, so A wins on perplexity. A is lower in 7 of 7 " in told
    short = [run(name, label, add, length=1200) for name, label, add in BOTH]
    for record in short:
        record["nll"] = record["nll"][:1199]
    assert "; 688 tokens are too few to name a winner. " in said(short)


def test_speeds_within_five_per_cent_tie() -> None:
    base = run("streaming", "S")
    for speed, best in [(96.0, ("S", "A")), (94.0, ("S",)), (110.0, ("A",))]:
        rows = compare([base, run("ladder", "A", tokens_per_second=speed)])
        assert rows[-1].best == best
    assert "Prefill speed: a tie of all" in said([base, run("ladder", "A", tokens_per_second=96.0)])
    slow_full = run("full", "F", tokens_per_second=50.0)
    assert "Prefill speed: S and A tie; S 100" in said(
        [slow_full, base, run("ladder", "A", tokens_per_second=96.0)]
    )
    assert "Prefill speed: S wins" in said([base, run("ladder", "A", tokens_per_second=94.0)])


def test_the_table_marks_the_best_of_each_window() -> None:
    rows = compare([run("full", "F", -0.1, late=2.0), run("streaming", "S")])
    by_name = {row.name: row for row in rows}
    assert by_name["0 to 511"].best == ("F", "S")
    assert by_name["512 to 1,023"].best == ("F",)
    assert by_name["2,048 to 4,095"].best == ("S",)
    assert by_name["peak"].best == ("S",)


def test_a_full_cache_that_breaks_away_is_reported_with_its_place() -> None:
    bounded = run("streaming", "S")
    broken = said([run("full", "F", late=2.0), bounded])
    assert "F: from about token 3,072 on" in broken
    assert "trained on 3,000 tokens" in broken
    assert "does not break away" in said([run("full", "F", -0.1), bounded])


def test_a_text_that_never_fills_the_caches_is_reported() -> None:
    short = [run(n, n, length=400) for n in ("streaming", "ladder")]
    for record in short:
        record["nll"] = record["nll"][:399]
    assert "never filled them" in said(short)


def test_only_runs_of_one_text_are_compared() -> None:
    base = run("streaming", "S")
    other = run("ladder", "A", samples_sha256="other")
    with pytest.raises(InputError, match="on different tokens"):
        compare([base, other])
    with pytest.raises(InputError, match="0 runs"):
        conclusions([])
    with pytest.raises(InputError, match="is not a perplexity run"):
        compare([{"kind": "demo"}])

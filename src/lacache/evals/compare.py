"""Compare perplexity runs of one text: a table and plain sentences, all from their records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from lacache.common.records import Record
from lacache.errors import InputError
from lacache.evals.monitor import CacheMonitor
from lacache.evals.perplexity import buckets, difference, doubling_edges, running
from lacache.models.model_info import GrowingLayer

TIE_IN_SPEED = 0.05
"""Speeds closer than this share count as a tie: a machine is rarely quieter than that."""

_WINDOW = 512
_FEW = 1024
"""Fewer tokens than these are too little text to name a winner."""
_MIB = 2**20


@final
@dataclass(frozen=True)
class Comparison:
    """One metric: a printed number for each run, and the labels of the best; several are a tie."""

    group: str
    name: str
    numbers: tuple[str, ...]
    best: tuple[str, ...]


def trace_record(label: str, monitor: CacheMonitor, growing: Sequence[GrowingLayer]) -> Record:
    """Return what a run's record gets for the plots, besides its figures.

    Args:
        label: what the run is called.
        monitor: of the run, with its cache as the text has left it.
        growing: the model's layers with a growing cache.

    Returns:
        The label, `trace` (after each forward: tokens seen, tokens per layer, bytes), and `kept`
        with `head_to_kept`: which tokens each KV head of each layer holds, equal lists once.
    """
    cache: Any = monitor.cache
    lists: dict[tuple[int, ...], int] = {}
    by_layer = [
        [
            lists.setdefault(tuple(cache.kept_tokens(layer.index, head)), len(lists))
            for head in range(layer.num_heads)
        ]
        for layer in growing
    ]
    return {
        "label": label,
        "trace": [list(held) for held in monitor.trace],
        "num_seen": cache.report().num_seen,
        "kept": [list(tokens) for tokens in lists],
        "head_to_kept": by_layer,
    }


def compare(records: Sequence[Record]) -> list[Comparison]:
    """Tabulate perplexity by position, bytes and speed.

    Numbers that are printed alike are a tie, and so are speeds within `TIE_IN_SPEED`.

    Args:
        records: perplexity runs of the same tokens, each with a "label".

    Raises:
        InputError: no runs, or runs on different tokens.
    """
    validate_same_text(records)
    first = min((r["capacity"] for r in records if r["capacity"]), default=_WINDOW)
    edges = doubling_edges(first, records[0]["length"])
    by_record = [buckets(record["nll"], edges) for record in records]
    rows = [
        _lowest(
            "Perplexity, tokens",
            f"{same[0].start:,} to {same[0].stop - 1:,}",
            records,
            [bucket.perplexity for bucket in same],
        )
        for same in zip(*by_record, strict=True)
    ]
    rows.append(_lowest("Perplexity, tokens", "all", records, [r["perplexity"] for r in records]))
    for name in ("peak", "mean"):
        sizes = [r[f"{name}_bytes"] / _MIB for r in records]
        rows.append(_lowest("Cache in MiB", name, records, sizes))
    speeds = [r["tokens_per_second"] for r in records]
    fast = tuple(
        r["label"]
        for r, speed in zip(records, speeds, strict=True)
        if speed >= (1 - TIE_IN_SPEED) * max(speeds)
    )
    rows.append(Comparison("Speed", "tokens/s", tuple(f"{speed:,.0f}" for speed in speeds), fast))
    return rows


def conclusions(records: Sequence[Record]) -> list[str]:
    """Return in sentences which run is best in what.

    Raises:
        InputError: no runs, or runs on different tokens.
    """
    validate_same_text(records)
    bounded = [r for r in records if r["capacity"]]
    full = [r for r in records if not r["capacity"]]
    return [
        _overall(records),
        *(_pair(r, bounded[0]) for r in bounded[1:]),
        *(_full(r, bounded) for r in full if bounded),
        _ordered("Peak cache bytes", records, "peak_bytes", lambda n: f"{n / _MIB:,.1f} MiB"),
        _ordered(
            "Prefill speed",
            records,
            "tokens_per_second",
            lambda n: f"{n:,.0f} tokens/s",
            highest=True,
            tie=TIE_IN_SPEED,
        ),
    ]


def validate_same_text(records: Sequence[Record]) -> None:
    """Raise InputError unless these are perplexity runs, at least one, on the same tokens."""
    if not records:
        raise InputError("0 runs leave nothing to compare; give at least one")
    for record in records:
        if record.get("kind") != "ppl":
            raise InputError(
                f"a record of kind {record.get('kind')!r} is not a perplexity run; give the runs "
                "of a demo.json"
            )
    if len({record["samples_sha256"] for record in records}) > 1:
        raise InputError(
            "the runs are on different tokens, and only runs on the same ones can be compared; "
            "run one text with each policy"
        )


def _lowest(
    group: str, name: str, records: Sequence[Record], values: Sequence[float]
) -> Comparison:
    """Make a row in which less is better."""
    numbers = tuple(_number(value) for value in values)
    least = numbers[values.index(min(values))]
    best = tuple(r["label"] for r, n in zip(records, numbers, strict=True) if n == least)
    return Comparison(group, name, numbers, best)


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def _overall(records: Sequence[Record]) -> str:
    ordered = sorted(records, key=lambda r: float(r["perplexity"]))
    best, *others = ordered
    rest = [
        f"{r['label']} {_number(r['perplexity'])} ({_more(r['perplexity'], best['perplexity'])})"
        for r in others
    ]
    return (
        f"Perplexity over all {records[0]['length']:,} tokens: {best['label']} is lowest with "
        f"{_number(best['perplexity'])}" + "".join(f"; {text}" for text in rest) + "."
    )


def _more(value: float, least: float) -> str:
    if _number(value) == _number(least):
        return "a tie"
    ratio = value / least
    return f"{ratio:,.1f} times" if ratio >= 2 else f"{100 * (ratio - 1):.1f} % more"


def _pair(record: Record, base: Record) -> str:
    """Compare two bounded caches, over the tokens that came when at least one was full."""
    start = min(int(r["capacity"]) for r in (record, base))
    ours, theirs = record["nll"][start - 1 :], base["nll"][start - 1 :]
    if not ours:
        return (
            f"{record['label']} against {base['label']}: the text of {record['length']:,} tokens "
            "never filled them, so they are the same."
        )
    windows = list(zip(running(ours, _WINDOW), running(theirs, _WINDOW), strict=True))
    wins = sum(a.perplexity < b.perplexity for a, b in windows)
    losses = sum(a.perplexity > b.perplexity for a, b in windows)
    compared = f"{record['label']} against {base['label']} on tokens from {start:,} on"
    gap = difference(ours, theirs)
    if gap.mean == 0:
        return f"{compared}: the same perplexity."
    if len(ours) < _FEW:
        verdict = f"{len(ours):,} tokens are too few to name a winner"
    elif gap.is_clear:
        winner = record["label"] if gap.mean < 0 else base["label"]
        verdict = f"above two standard errors, so {winner} wins on perplexity"
    else:
        verdict = "within two standard errors, so there is no clear winner"
    percent = 100 * math.expm1(gap.mean)
    return (
        f"{compared}: perplexity {abs(percent):.2f} % {'lower' if percent < 0 else 'higher'}, "
        f"standard error {100 * gap.error:.2f} %; {verdict}. {record['label']} is "
        f"lower in {wins} of {len(windows)} windows of about {_WINDOW} tokens, and higher in "
        f"{losses}."
    )


def _full(full: Record, bounded: Sequence[Record]) -> str:
    """State where the full cache leaves what the model was trained for."""
    context = full["model"].get("trained_context")
    trained = f" (the model was trained on {context:,} tokens)" if context else ""
    windows = running(full["nll"], _WINDOW)
    rivals = [running(r["nll"], _WINDOW) for r in bounded]
    for i, window in enumerate(windows):
        rest = [
            (a.perplexity, min(rival[i + j].perplexity for rival in rivals))
            for j, a in enumerate(windows[i:])
        ]
        if all(mine > 1.5 * other for mine, other in rest):
            return (
                f"{full['label']}: from about token {window.start:,} on its perplexity is more "
                f"than 1.5 times that of the best bounded cache{trained}, at the end "
                f"{_number(rest[-1][0])} against {_number(rest[-1][1])}."
            )
    return (
        f"{full['label']}: its perplexity does not break away from that of the bounded caches "
        f"within {full['length']:,} tokens{trained}."
    )


def _ordered(
    what: str,
    records: Sequence[Record],
    key: str,
    shown: Callable[[float], str],
    *,
    highest: bool = False,
    tie: float = 0.0,
) -> str:
    """List the runs from the best on, after those whose value is within a share of the best."""
    ordered = sorted(records, key=lambda r: float(r[key]), reverse=highest)
    values = [float(r[key]) for r in ordered]
    best = [
        r["label"]
        for r, value in zip(ordered, values, strict=True)
        if abs(value - values[0]) <= tie * max(value, values[0])
    ]
    winner = f"{best[0]} wins" if len(best) == 1 else f"{' and '.join(best)} tie"
    if len(best) == len(records) and len(best) > 1:
        winner = "a tie of all"
    runs = (f"{r['label']} {shown(value)}" for r, value in zip(ordered, values, strict=True))
    return f"{what}: {winner}; {', '.join(runs)}."

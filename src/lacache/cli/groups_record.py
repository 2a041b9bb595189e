"""What every KV head of several groups holds, as a record."""

from collections.abc import Sequence
from typing import Any

from lacache.policies.bind import BoundPolicy
from lacache.policies.groups import mean_capacity
from lacache.policies.kept import coverage, kept_after
from lacache.policies.schedule import UNBOUNDED


def groups_record(bound: BoundPolicy, num_seen: int, *, settled: bool) -> dict[str, Any]:
    """Return counts for each group and, once for all KV heads that hold the same, the tokens.

    `kept` are distinct lists of token numbers in slot order, `head_to_kept` says for each layer
    and KV head which list it has. With `settled`, a compaction that is due has run.
    """
    lists: list[list[int]] = []
    head_to_kept = [[0] * heads for heads in bound.shape.num_heads]
    groups = []
    for group in bound.groups:
        kept = kept_after(group.schedule, num_seen)
        is_due = kept.schedule.is_full(kept.state)
        if settled:
            kept.settle()
        for layer, heads in group.heads.items():
            tokens = kept.by_pattern[group.pattern(layer)]
            if tokens not in lists:
                lists.append(tokens)
            for head in heads:
                head_to_kept[layer][head] = lists.index(tokens)
        groups.append(
            {
                "heads": {str(layer): list(heads) for layer, heads in group.heads.items()},
                "capacity": _finite(group.schedule.capacity),
                "final_capacity": _finite(group.schedule.final_capacity),
                "num_cached": kept.state.num_cached,
                "cursor": kept.state.cursor,
                "compaction_due": is_due,
            }
        )
    mean = mean_capacity(bound.groups)
    held = [len(lists[number]) for heads in head_to_kept for number in heads]
    return {
        "num_seen": num_seen,
        "mean_capacity": None if mean == UNBOUNDED else round(mean, 3),
        "mean_cached": round(sum(held) / len(held), 3),
        "kept": lists,
        "head_to_kept": head_to_kept,
        "coverage": coverage(dict(enumerate(lists))),
        "groups": groups,
    }


def _finite(capacity: int) -> int | None:
    return None if capacity == UNBOUNDED else capacity


def describe_heads(heads: Sequence[tuple[int, int]], num_heads: Sequence[int]) -> str:
    """Pairs (layer, KV head) in few words: `0-3` are whole layers, `18.2` is one head."""
    from lacache.cli.ranges import describe

    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    whole = [layer for layer, of in by_layer.items() if len(of) == num_heads[layer]]
    single = [
        f"{layer}.{head}" for layer, of in by_layer.items() if layer not in whole for head in of
    ]
    return ", ".join(([describe(whole)] if whole else []) + single)

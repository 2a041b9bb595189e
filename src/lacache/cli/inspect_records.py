"""Records of the tokens that a cache holds, which `lacache inspect` prints and plots."""

from collections.abc import Sequence
from typing import Any

from lacache.cli.output import format_numbers
from lacache.policies.bind import BoundPolicy
from lacache.policies.groups import mean_capacity
from lacache.policies.kept import KeptTokens, coverage, kept_after, lists_by_head
from lacache.policies.schedule import UNBOUNDED


def ladder_record(kept: KeptTokens) -> dict[str, Any]:
    """Return the record of a policy with one schedule, for tokens that each layer holds.

    Returns:
        Counts; `kept`, distinct lists of token numbers in slot order, by the first layer that has
        them; and `layer_to_kept`, the index of the list of each layer.
    """
    lists: list[list[int]] = []
    number: dict[int, int] = {}
    for pattern in kept.schedule.patterns:
        if pattern not in number:
            tokens = kept.by_pattern[pattern]
            # Different patterns hold the same tokens until the first compaction.
            if tokens not in lists:
                lists.append(tokens)
            number[pattern] = lists.index(tokens)
    state = kept.state
    return {
        "num_seen": state.num_seen,
        "num_cached": state.num_cached,
        "cursor": state.cursor,
        "kept": lists,
        "layer_to_kept": [number[pattern] for pattern in kept.schedule.patterns],
        "coverage": coverage(kept.by_pattern),
    }


def groups_record(bound: BoundPolicy, num_seen: int, *, settled: bool) -> dict[str, Any]:
    """Return the record of a policy with several groups, for tokens that each KV head holds.

    Args:
        bound: the policy.
        num_seen: number of tokens that were processed.
        settled: whether to run a compaction that is due.

    Returns:
        Counts for each group; `kept`, distinct lists of token numbers in slot order; and
        `head_to_kept`, the index of the list of each KV head of each layer.
    """
    by_group = [kept_after(group.schedule, num_seen) for group in bound.groups]
    due = [kept.schedule.is_full(kept.state) for kept in by_group]
    if settled:
        for kept in by_group:
            kept.settle()
    lists, head_to_kept = lists_by_head(bound.groups, by_group, bound.shape.num_layers)
    groups = [
        {
            "heads": {str(layer): list(heads) for layer, heads in group.heads.items()},
            "capacity": _finite(group.schedule.capacity),
            "final_capacity": _finite(group.schedule.final_capacity),
            "num_cached": kept.state.num_cached,
            "cursor": kept.state.cursor,
            "compaction_due": is_due,
        }
        for group, kept, is_due in zip(bound.groups, by_group, due, strict=True)
    ]
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


def format_heads(heads: Sequence[tuple[int, int]], num_heads: Sequence[int]) -> str:
    """Return pairs (layer, KV head) as text: `0-3` are whole layers, `18.2` is one KV head."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    whole = [layer for layer, of in by_layer.items() if len(of) == num_heads[layer]]
    single = [
        f"{layer}.{head}" for layer, of in by_layer.items() if layer not in whole for head in of
    ]
    return ", ".join(([format_numbers(whole)] if whole else []) + single)

"""What every layer holds, as a record."""

from typing import Any

from lacache.policies.kept import KeptTokens, coverage


def ladder_record(kept: KeptTokens) -> dict[str, Any]:
    """Counts and, once for all layers that hold the same, the tokens in slot order.

    `kept` is ordered by the first layer that has a list, and `layer_to_kept` says which list
    each layer has.
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

"""Plans in the snapshots of lacache 0.1, which had policies with capacities as JSON."""

from collections.abc import Mapping
from typing import Any

from lacache.errors import ConfigError
from lacache.policies import (
    UNBOUNDED,
    BoundPolicy,
    Full,
    Group,
    Groups,
    Ladder,
    LayerPolicy,
    Policy,
    RetrievalHeads,
    ShrinkingWindow,
    Streaming,
)

_LAYER_POLICIES: dict[str, type[LayerPolicy]] = {
    "full": Full,
    "ladder": Ladder,
    "streaming": Streaming,
    "shrinking": ShrinkingWindow,
}


def is_same_plan(record: object, bound: BoundPolicy) -> bool:
    """Whether a plan of lacache 0.1 keeps the same tokens in a model as a bound policy."""
    try:
        policy, capacity = _policy(record)
        groups = policy.bind(bound.shape, UNBOUNDED if capacity is None else capacity)
    except (ConfigError, KeyError, TypeError, ValueError):
        return False
    return [(group.schedule, group.heads) for group in groups] == [
        (group.schedule, group.heads) for group in bound.groups
    ]


def _policy(record: object) -> tuple[Policy, int | None]:
    if not isinstance(record, Mapping):
        raise TypeError("no plan")
    if record["name"] == "groups":
        return Groups(tuple(map(_group, record["groups"]))), None
    settings = {key: _tuples(value) for key, value in record.items()}
    name = settings.pop("name")
    capacity = settings.pop("capacity", None)
    settings["evict_batch"] = settings.pop("refill", settings.get("evict_batch", 1))
    if name == "history":
        heads = (settings.pop("history"), *settings.pop("tiers"))
        return RetrievalHeads(heads=heads, **settings), capacity
    if name == "full":
        return Full(), None
    return _LAYER_POLICIES[name](**settings), capacity


def _group(record: Mapping[str, Any]) -> Group:
    policy, capacity = _policy(record["policy"])
    if not isinstance(policy, LayerPolicy):
        raise TypeError("a group with groups")
    return Group(policy, _tuples(record["members"]), capacity)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value

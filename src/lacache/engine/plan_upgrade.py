"""Plans of lacache 0.1, JSON in the headers of its snapshots, as policies of today."""

from collections.abc import Callable, Mapping
from typing import Any

from lacache.errors import ConfigError
from lacache.policies import (
    BoundPolicy,
    Full,
    Group,
    Groups,
    Ladder,
    ModelShape,
    Policy,
    RetrievalHeads,
    ShrinkingWindow,
    Streaming,
    bind_policy,
)

_POLICIES: dict[str, Callable[..., Policy]] = {
    "ladder": Ladder,
    "streaming": Streaming,
    "full": Full,
    "shrinking": ShrinkingWindow,
    "history": RetrievalHeads,
}


def bind_plan(plan: Any, shape: ModelShape) -> BoundPolicy:
    """Return what a plan of lacache 0.1 keeps in a model.

    Args:
        plan: such as `{"name": "ladder", "capacity": 512, "span": 15, "refill": 51}`.
        shape: of the model.

    Raises:
        ConfigError: it is no such plan, or cannot work for that model.
    """
    try:
        policy, capacity = _upgrade(plan)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(plan)[:60]} must be a plan of lacache 0.1; save another snapshot"
        ) from error
    return bind_policy(policy, capacity, shape, bytes_per_token=1, prompt_tokens=1)


def _upgrade(plan: Mapping[str, Any]) -> tuple[Any, int | None]:
    settings = {name: _tuples(value) for name, value in plan.items()}
    name = settings.pop("name")
    if name == "groups":
        return Groups(tuple(map(_upgrade_group, plan["groups"]))), None
    capacity = settings.pop("capacity", None)
    if "refill" in settings:
        settings["evict_batch"] = settings.pop("refill")
    if "history_heads" in settings:
        settings["growing_heads"] = settings.pop("history_heads")
    if name == "history":
        settings["heads"] = (settings.pop("history"), *settings.pop("tiers"))
    if name != "full":
        settings["positions"] = "slots"
    return _POLICIES[name](**settings), capacity


def _upgrade_group(group: Mapping[str, Any]) -> Group:
    policy, capacity = _upgrade(group["policy"])
    return Group(policy, _tuples(group["members"]), capacity)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value

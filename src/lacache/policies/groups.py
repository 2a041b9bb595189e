"""Groups: layers, or single KV heads of layers, that share one policy and so one capacity.

A layer that needs a long history can have it, and the others a short window, at the same total
bytes. What each group keeps still depends on counts alone. One group of all layers is the paper's
case.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.schedule import UNBOUNDED, BoundGroup, Plan, Policy

Member = int | tuple[int, int]
"""A layer with all its KV heads, or one pair (layer, KV head)."""


@final
@dataclass(frozen=True)
class Group:
    """Members with one policy.

    Args:
        policy: what each member keeps; a ladder's depth counts the layers of this group alone.
        members: layer numbers, counted over the layers with a growing cache, or pairs
            (layer, KV head).

    Raises:
        ConfigError: not a policy, no members, or something else among them.
    """

    policy: Policy
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise ConfigError(
                f"policy={self.policy!r} of a group must be a policy; try Streaming(512)"
            )
        if isinstance(self.members, str) or not isinstance(self.members, Iterable):
            raise ConfigError(
                f"members={self.members!r} must be a sequence; try members=(0, 1, (2, 0))"
            )
        members = tuple(m if isinstance(m, int) else _pair(m) for m in self.members)
        for member in members:
            for number in member if isinstance(member, tuple) else (member,):
                validate_int("members", number, 0)
        if not members:
            raise ConfigError("members=() leaves a group without layers; give at least one")
        object.__setattr__(self, "members", members)


@final
@dataclass(frozen=True)
class Groups(Plan):
    """Groups that together hold every KV head of every layer exactly once.

    Raises:
        ConfigError: from the constructor for an empty or wrong sequence; from `bind_groups` for
            a head in no group or in two, or a policy that cannot work for the layers of its group.
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups:
            raise ConfigError("groups=() holds nothing; give at least one Group")
        for group in self.groups:
            if not isinstance(group, Group):
                raise ConfigError(f"groups holds {group!r}; each must be a Group(policy, members)")

    def bind_groups(self, num_heads: Sequence[int]) -> tuple[BoundGroup, ...]:
        """The groups over layers with `num_heads` KV heads each, in order of depth."""
        owner: dict[tuple[int, int], int] = {}
        for number, group in enumerate(self.groups):
            for member in group.members:
                for pair in heads_of(member, num_heads):
                    if pair in owner:
                        where = (
                            f"twice in group {number}"
                            if owner[pair] == number
                            else f"in the groups {owner[pair]} and {number}"
                        )
                        raise ConfigError(
                            f"KV head {pair[1]} of layer {pair[0]} is {where}; name it once"
                        )
                    owner[pair] = number
        for layer, heads in enumerate(num_heads):
            for head in range(heads):
                if (layer, head) not in owner:
                    raise ConfigError(
                        f"KV head {head} of layer {layer} is in no group; add {layer} (the whole "
                        f"layer) or ({layer}, {head}) to the members of one"
                    )
        return tuple(
            _bind(group.policy, sorted(pair for pair, n in owner.items() if n == number))
            for number, group in enumerate(self.groups)
        )


def mean_capacity(groups: Sequence[BoundGroup]) -> float:
    """Most tokens that KV heads ever hold on average: what the bytes follow from."""
    schedules = [group.schedule for group in groups]
    heads = [group.num_heads for group in groups]
    if any(schedule.final_capacity == UNBOUNDED for schedule in schedules):
        return UNBOUNDED
    # What all may hold is linear in the tokens seen between these.
    turns = {turn for s in schedules for turn in (s.capacity, s.steady_from)}
    most = max(
        sum(min(n, s.limit(n)) * h for s, h in zip(schedules, heads, strict=True)) for n in turns
    )
    return most / sum(heads)


def _pair(member: object) -> tuple[int, int]:
    if isinstance(member, Sequence) and not isinstance(member, str) and len(member) == 2:
        return member[0], member[1]
    raise ConfigError(f"member {member!r} must be a layer (3) or a pair (layer, KV head) (3, 0)")


def pairs_of(members: Iterable[Member], num_heads: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs (layer, KV head) of members, each once and in order of depth.

    Raises:
        ConfigError: no such layer or head.
    """
    return sorted({pair for member in members for pair in heads_of(member, num_heads)})


def heads_of(member: Member, num_heads: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs (layer, KV head) of a member.

    Raises:
        ConfigError: no such layer or head.
    """
    layer, head = member if isinstance(member, tuple) else (member, None)
    if layer >= len(num_heads):
        raise ConfigError(
            f"layer {layer} of a group must be below the number of layers {len(num_heads)}; try "
            f"layers up to {len(num_heads) - 1}"
        )
    if head is None:
        return [(layer, h) for h in range(num_heads[layer])]
    if head >= num_heads[layer]:
        raise ConfigError(
            f"KV head {head} of layer {layer} must be below the layer's {num_heads[layer]} KV "
            f"heads; try heads up to {num_heads[layer] - 1}"
        )
    return [(layer, head)]


def _bind(policy: Policy, pairs: list[tuple[int, int]]) -> BoundGroup:
    heads: dict[int, tuple[int, ...]] = {}
    for layer, head in pairs:
        heads[layer] = (*heads.get(layer, ()), head)
    return BoundGroup(policy.bind(len(heads)), heads)

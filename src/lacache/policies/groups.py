"""Groups: layers, or single KV heads of layers, that share one policy and one capacity.

A layer that needs a long history can have it, and the others a short window, at the same total
bytes. What each group keeps still depends on counts alone. One group of all layers is the paper's
case.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.members import Member, format_members, heads_of, validate_members
from lacache.policies.policy import BoundGroup, LayerPolicy, ModelShape, Policy
from lacache.policies.schedule import UNBOUNDED, Schedule


@final
@dataclass(frozen=True)
class Group:
    """Members with one policy.

    Args:
        policy: what each member keeps; a ladder's depth counts the layers of this group alone.
        members: layer numbers, counted over the layers with a growing cache, or pairs
            (layer, KV head).
        capacity: most tokens that each member holds; None for a policy without a limit.

    Raises:
        ConfigError: not a policy of layers, no members or capacity, or something else among them.
    """

    policy: LayerPolicy
    members: tuple[Member, ...]
    capacity: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.policy, LayerPolicy):
            raise ConfigError(
                f"policy={str(self.policy)!r} of a group must be a policy of whole layers; try "
                "Streaming()"
            )
        if self.policy.takes_budget:
            if self.capacity is None:
                raise ConfigError(
                    f"a group with policy {self.policy} needs a capacity in tokens; try "
                    "capacity=512"
                )
            validate_int("capacity", self.capacity, 1)
        elif self.capacity is not None:
            raise ConfigError(
                f"capacity={self.capacity} cannot be given with policy {self.policy}, which keeps "
                "everything; leave it out"
            )
        members = validate_members(self.members)
        if not members:
            raise ConfigError("members=() leaves a group without layers; give at least one")
        object.__setattr__(self, "members", members)

    def text(self, *, all_settings: bool = False) -> str:
        """Return `MEMBERS@CAPACITY@POLICY`; see `Policy.text`."""
        capacity = () if self.capacity is None else (str(self.capacity),)
        policy = self.policy.text(all_settings=all_settings)
        return "@".join((format_members(self.members), *capacity, policy))


@final
@dataclass(frozen=True)
class Groups(Policy):
    """Groups that together hold every KV head of every layer exactly once.

    Raises:
        ConfigError: from the constructor for an empty or wrong sequence; from `bind` for a head
            in no group or in two, or a policy that cannot work for the layers of its group.
    """

    groups: tuple[Group, ...]

    names: ClassVar = {"groups": {}}
    takes_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.groups, str) or not isinstance(self.groups, Iterable):
            raise ConfigError(
                f"groups={self.groups!r} must be a sequence of Group; try "
                "groups=(Group(Streaming(), (0, 1), 512),)"
            )
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups:
            raise ConfigError("groups=() holds nothing; give at least one Group")
        for group in self.groups:
            if not isinstance(group, Group):
                raise ConfigError(
                    f"groups holds {group!r}; each must be a Group(policy, members, capacity)"
                )

    def text(self, *, all_settings: bool = False) -> str:
        """Return the text form; see `Policy.text`."""
        return "groups:" + "/".join(g.text(all_settings=all_settings) for g in self.groups)

    def with_sinks(self, sinks: int) -> "Groups":
        """Return these groups, each with at least `sinks` attention sinks."""
        return Groups(
            tuple(Group(g.policy.with_sinks(sinks), g.members, g.capacity) for g in self.groups)
        )

    def bind(self, shape: ModelShape, capacity: int = UNBOUNDED) -> tuple[BoundGroup, ...]:
        """Return the groups in a model; each has a capacity of its own."""
        owner: dict[tuple[int, int], int] = {}
        for number, group in enumerate(self.groups):
            for member in group.members:
                for pair in heads_of(member, shape.num_heads):
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
        for layer, heads in enumerate(shape.num_heads):
            for head in range(heads):
                if (layer, head) not in owner:
                    raise ConfigError(
                        f"KV head {head} of layer {layer} is in no group; add {layer} (the whole "
                        f"layer) or ({layer}, {head}) to the members of one"
                    )
        members = [
            _by_layer(pair for pair, n in owner.items() if n == number)
            for number in range(len(self.groups))
        ]
        return _with_one_batch(self.groups, members)


def mean_capacity(groups: Sequence[BoundGroup]) -> float:
    """Return the most tokens that KV heads ever hold on average: what the bytes follow from."""
    if any(group.schedule.final_capacity == UNBOUNDED for group in groups):
        return UNBOUNDED
    heads = [group.num_heads for group in groups]
    return most_slots([group.schedule for group in groups], heads) / sum(heads)


def most_slots(schedules: Sequence[Schedule], num_heads: Sequence[int]) -> int:
    """Return the most slots that so many KV heads of each bounded schedule ever hold together."""
    # What all may hold is linear in the tokens seen between these.
    bends = {num_seen for s in schedules for num_seen in (s.capacity, s.steady_from)}
    return max(
        sum(min(n, s.limit(n)) * h for s, h in zip(schedules, num_heads, strict=True))
        for n in bends
    )


def _by_layer(pairs: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """Return the KV heads of each layer, both in increasing order."""
    heads: dict[int, tuple[int, ...]] = {}
    for layer, head in sorted(pairs):
        heads[layer] = (*heads.get(layer, ()), head)
    return heads


def _with_one_batch(
    groups: Sequence[Group], members: Sequence[Mapping[int, tuple[int, ...]]]
) -> tuple[BoundGroup, ...]:
    """Return bound groups that all compact at the same tokens, by the same number of slots.

    Else chunks of a prompt would end at every compaction of any group. The batch is that given in
    slots, or the smallest of shares, rounded up to what all ladders can free. Capacities are
    lowered by less than a batch, so that the groups are full at the same tokens.

    Args:
        groups: the groups.
        members: for each, the KV heads of each of its layers.

    Raises:
        ConfigError: evict batches in slots differ, or a group cannot free as many at once.
    """
    sizes = [UNBOUNDED if group.capacity is None else group.capacity for group in groups]
    bound = [
        BoundGroup(group.policy.schedule(len(heads), size), heads, group.policy)
        for group, heads, size in zip(groups, members, sizes, strict=True)
    ]
    bounded = [each.schedule for each in bound if each.schedule.evict_batch]
    if len(bounded) < 2:
        return tuple(bound)
    unit = math.lcm(*(schedule.evict_unit for schedule in bounded))
    batch = -(-_batch_of(groups, bounded) // unit) * unit
    first = min(schedule.capacity for schedule in bounded)
    return tuple(
        _with_batch(each, batch, each.schedule.capacity - (each.schedule.capacity - first) % batch)
        if each.schedule.evict_batch
        else each
        for each in bound
    )


def _batch_of(groups: Sequence[Group], schedules: Sequence[Schedule]) -> int:
    """Return the evict batch that groups give in slots, else the smallest of their shares."""
    given = {getattr(group.policy, "evict_batch", None) for group in groups}
    slots = sorted(value for value in given if isinstance(value, int))
    if len(slots) > 1:
        raise ConfigError(
            f"evict_batch={slots[-1]} of one group must be that of all groups, which are compacted "
            f"together, and another has {slots[0]}; try evict_batch={slots[0]} in all"
        )
    return slots[0] if slots else min(schedule.evict_batch for schedule in schedules)


def _with_batch(group: BoundGroup, batch: int, capacity: int) -> BoundGroup:
    depth = len(group.heads)
    policy = group.policy.with_evict_batch(batch, depth, capacity)
    schedule = policy.schedule(depth, capacity)
    if schedule.evict_batch != batch:
        raise ConfigError(
            f"evict_batch={batch} is more than the {schedule.evict_batch} slots that "
            f"{group.policy} can free at once with capacity={capacity}, and all groups are "
            f"compacted together; try evict_batch={schedule.evict_batch} or a larger capacity"
        )
    return BoundGroup(schedule, group.heads, policy)

"""The layout of a static cache's buffers, and the bytes that they take."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from lacache.cache.codecs import find_codecs
from lacache.cache.encoded import bytes_per_token
from lacache.common.validation import validate_kv_dtype
from lacache.errors import ConfigError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.model_info import GrowingLayer, ModelInfo
from lacache.policies import UNBOUNDED, BoundPolicy, Budget, Schedule, most_slots


@final
@dataclass(frozen=True)
class Member:
    """KV heads of one layer and head group.

    Args:
        layer: index of the layer.
        group: index of the head group.
        heads: indices among the layer's KV heads.
    """

    layer: int
    group: int
    heads: tuple[int, ...]


@final
@dataclass(frozen=True)
class PoolLayout:
    """KV heads that share one pool of slots, since their keys, and their values, are of one size.

    Args:
        members: layer by layer.
        num_slots: slots of one sequence, over all KV heads.
        key_size: D of a key.
        value_size: D of a value.
        unrotated: whether every key is stored unrotated besides.
        regions_move: whether there are fewer slots than the head groups' capacities add up to.
    """

    members: tuple[Member, ...]
    num_slots: int
    key_size: int
    value_size: int
    unrotated: bool
    regions_move: bool


@final
@dataclass(frozen=True)
class CacheLayout:
    """Head groups, layers and types of a static cache; fixed before anything is allocated.

    Args:
        info: the model's layers.
        bound: the bound policy.
        kv_dtype: "int8" or "int4" (docs/adr/0023); None is the model's own type. Sliding-window
            layers stay in the model's type.
        shares_slots: whether slots that some KV heads no longer need are reused by others. Regions
            of the pool move then. Else each KV head has room for the most it ever holds.

    Raises:
        ConfigError: the policy keeps every token, there is no such kv_dtype, or it does not fit the
            heads.
        UnsupportedModelError: the model has linear-attention layers.
        UnsupportedOperationError: the policy splits a layer whose attention has learned sinks.
    """

    info: ModelInfo
    bound: BoundPolicy
    kv_dtype: str | None = None
    shares_slots: bool = True

    def __post_init__(self) -> None:
        if self.info.linear:
            raise UnsupportedModelError(
                f"layer {self.info.linear[0]} is linear attention, whose state the engine does "
                "not hold; use LaCache and lacache.stream with this model"
            )
        if any(group.schedule.capacity == UNBOUNDED for group in self.bound.groups):
            raise ConfigError(
                f"{self.bound.policy} keeps every token, and the engine's memory is fixed; "
                "try policy='balanced' with a budget, or use LaCache and lacache.stream"
            )
        for group in self.bound.groups:
            for depth, heads in group.heads.items():
                layer = self.info.growing[depth]
                if layer.has_sinks and len(heads) < layer.num_heads:
                    raise UnsupportedOperationError(
                        f"the attention of layer {layer.index} has a number for each head, which "
                        "KV heads in different groups cannot share; use groups of whole layers"
                    )
        validate_kv_dtype(self.kv_dtype)

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes that are reserved for one sequence, whatever its length."""
        return self.growing_bytes + self._sliding_bytes(sys.maxsize)

    @cached_property
    def pools(self) -> tuple[PoolLayout, ...]:
        """The pools of slots: one, unless layers differ in the sizes of keys and values."""
        schedules = [group.schedule for group in self.bound.groups]
        members: dict[tuple[int, int, bool], list[Member]] = {}
        for depth, layer in enumerate(self.info.growing):
            kind = layer.key_size, layer.value_size, self._by_slot and layer.rotation is not None
            members.setdefault(kind, []).extend(
                Member(layer.index, index, group.heads[depth])
                for index, group in enumerate(self.bound.groups)
                if depth in group.heads
            )
        pools = []
        for kind, mine in members.items():
            num_heads = [0] * len(schedules)
            for member in mine:
                num_heads[member.group] += len(member.heads)
            largest = sum(s.capacity * n for s, n in zip(schedules, num_heads, strict=True))
            # Windows shrink by whole slots. All heads together never hold more than the policy
            # computes, but the heads of one pool can be a slot each above it for a while.
            shrinking = (
                n
                for s, n in zip(schedules, num_heads, strict=True)
                if s.final_capacity != s.capacity
            )
            slack = sum(shrinking) if len(members) > 1 else 0
            num_slots = largest
            if self.shares_slots:
                num_slots = min(largest, most_slots(schedules, num_heads) + slack)
            pools.append(PoolLayout(tuple(mine), num_slots, *kind, num_slots < largest))
        return tuple(pools)

    @property
    def growing_bytes(self) -> int:
        """Bytes of one sequence in the layers under the policy, unrotated keys included."""
        of_keys, of_values = find_codecs(self.kv_dtype, self.info.dtype)
        in_pools = 0
        for pool in self.pools:
            key = of_keys.vector_bytes(pool.key_size)
            value = of_values.vector_bytes(pool.value_size)
            in_pools += pool.num_slots * (key * (1 + pool.unrotated) + value)
        sinks = 0
        for group in self.bound.groups:
            for depth, heads in group.heads.items():
                layer = self.info.growing[depth]
                num_slots = self.num_apart(layer, group.schedule)
                sinks += len(heads) * num_slots * of_keys.vector_bytes(layer.key_size)
        return in_pools + sinks

    def num_apart(self, layer: GrowingLayer, schedule: Schedule) -> int:
        """Return the unrotated keys of a KV head that are outside of the pool: its sinks'."""
        return 0 if self._by_slot else num_unrotated(layer, schedule)

    def held_bytes(self, num_seen: int, num_cached: Sequence[int]) -> int:
        """Return the bytes of the tokens that one sequence holds.

        Args:
            num_seen: its tokens.
            num_cached: for each head group, the tokens in each of its KV heads.
        """
        return self._group_bytes(num_cached) + self._sliding_bytes(num_seen)

    @property
    def _by_slot(self) -> bool:
        return any(group.schedule.positions == "slots" for group in self.bound.groups)

    def _group_bytes(self, num_slots: Sequence[int]) -> int:
        return sum(
            len(heads) * self._head_bytes(self.info.growing[depth], group.schedule, slots)
            for group, slots in zip(self.bound.groups, num_slots, strict=True)
            for depth, heads in group.heads.items()
        )

    def _head_bytes(self, layer: GrowingLayer, schedule: Schedule, num_slots: int) -> int:
        """Return the bytes of so many slots in one KV head of a layer."""
        key, value = _vectors_bytes(layer, self.kv_dtype, self.info.dtype)
        return num_slots * (key + value) + min(num_slots, num_unrotated(layer, schedule)) * key

    def _sliding_bytes(self, num_seen: int) -> int:
        return sum(
            layer.num_heads
            * min(layer.window, num_seen)
            * (layer.key_size + layer.value_size)
            * self.info.dtype.itemsize
            for layer in self.info.sliding
        )


def bind_within_bytes(
    info: ModelInfo,
    budget: Budget | None,
    bind: Callable[[int], BoundPolicy],
    kv_dtype: str | None = None,
    *,
    shares_slots: bool = True,
) -> BoundPolicy:
    """Bind a policy so that the buffers take no more than a budget in bytes.

    Second copies of keys count too. Where slots are not shared, each head group counts at its
    largest.

    Args:
        info: the model's layers.
        budget: the budget; `bind` alone handles one that is not in bytes.
        bind: returns the bound policy, given the bytes of a token over all growing layers.
        kv_dtype: see CacheLayout.
        shares_slots: see CacheLayout.

    Raises:
        ConfigError: too few bytes for the policy, or no such kv_dtype.
    """
    validate_kv_dtype(kv_dtype)
    per_token = bytes_per_token(info, kv_dtype)
    limit = 0 if budget is None else budget.num_bytes
    while True:
        bound = bind(per_token)
        taken = CacheLayout(info, bound, kv_dtype, shares_slots).growing_bytes if limit else 0
        if taken <= limit:
            return bound
        per_token = max(per_token + 1, -(-per_token * taken // limit))


def shares_slots_on(device: torch.device) -> bool:
    """Return whether head groups share slots on a device.

    A step that is captured on a GPU reads its slots at fixed places. To copy them together first
    would cost more time there than sharing is worth (docs/adr/0024).
    """
    return device.type == "cpu"


def num_unrotated(layer: GrowingLayer, schedule: Schedule) -> int:
    """Return the slots of a layer whose keys move, and which are stored unrotated besides."""
    return 0 if layer.rotation is None else schedule.num_moving


def _vectors_bytes(
    layer: GrowingLayer, kv_dtype: str | None, dtype: torch.dtype
) -> tuple[int, int]:
    """Return the bytes of a key and of a value of one KV head."""
    keys, values = find_codecs(kv_dtype, dtype)
    return keys.vector_bytes(layer.key_size), values.vector_bytes(layer.value_size)

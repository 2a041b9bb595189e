"""One sequence of a static cache as plain tensors, for snapshots and the prefix cache."""

import re
from typing import final

import torch
from torch import Tensor

from lacache.cache.group_state import GatherPlan, GroupState
from lacache.cache.static.static_cache import StaticKVCache
from lacache.cache.static.storage import Buffer
from lacache.errors import InputError
from lacache.policies.schedule import State

SequenceTensors = dict[str, Tensor]
"""By name, on the CPU; N is the number of slots in use, whatever the capacity.

`base`: of the positions, int64 [1]; see `QueryPositions`.
`group.0.counts`: num_seen, num_cached, cursor, origin and num_compactions, int64 [5].
`group.0.original_positions`: of the keys in the slots, int64 [patterns, N].
`layer.1.heads.0.unrotated_keys.0`: of the slots whose keys move, the keys as the model gave them
[H, M, D], or as many tensors as the buffer stores. `keys`: of the other slots [H, N - M, D], where
there are any. `values` [H, N, D].
`layer.2.ring.keys.0`: of a sliding-window layer. `values` likewise.
"""

_BASE = "base"

_NAMES_OF_0_1 = {
    r"\.came_in_at$": ".original_positions",
    r"\.part\.(\d+)\.": r".heads.\1.",
    r"\.came_in\.": ".unrotated_keys.",
}


def upgrade_tensors(tensors: SequenceTensors) -> SequenceTensors:
    """Rename the tensors of a snapshot of lacache 0.1; newer ones do not change."""
    upgraded = {} if _BASE in tensors else {_BASE: torch.tensor([0])}
    for name, tensor in tensors.items():
        for old, new in _NAMES_OF_0_1.items():
            name = re.sub(old, new, name)
        upgraded[name] = tensor
    return upgraded


def export_sequence(cache: StaticKVCache, batch_slot: int) -> SequenceTensors:
    """Copy what a batch slot holds to the CPU: used slots only, keys that move unrotated.

    Raises:
        UnsupportedOperationError: the last change of the sequence was interrupted.
    """
    sequence = cache.sequences[batch_slot]
    sequence.validate_complete()
    for kv_heads in cache.all_kv_heads():
        group = sequence.groups[kv_heads.group]
        # The next gather plan would do this first, and may do it again.
        kv_heads.save(batch_slot, group.num_saved, group.state.num_cached)
    tensors = {_BASE: torch.tensor([sequence.base])}
    for index, group in enumerate(sequence.groups):
        counts = (*group.state, group.origin, group.num_compactions)
        tensors[f"group.{index}.counts"] = torch.tensor(counts)
        tensors[f"group.{index}.original_positions"] = group.original_positions()
    tensors |= _slots_in_use(cache, batch_slot)
    return {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def restore_sequence(cache: StaticKVCache, batch_slot: int, tensors: SequenceTensors) -> None:
    """Fill a cleared batch slot; keys are rotated as the last compaction did, bit for bit.

    Raises:
        InputError: the tensors do not fit this cache; clear the batch slot then.
    """
    remaining = _Remaining(tensors)
    sequence = cache.sequences[batch_slot]
    sequence.is_changing = True
    sequence.base = int(remaining.take(_BASE, (1,), torch.int64))
    plans = [_restore(group, f"group.{i}", remaining) for i, group in enumerate(sequence.groups)]
    cache.place(batch_slot)
    for name, slots in _slots_in_use(cache, batch_slot).items():
        slots.copy_(remaining.take(name, tuple(slots.shape), slots.dtype))
    remaining.validate_empty()
    for index, plan in enumerate(plans):
        cache.apply(batch_slot, index, plan)
    sequence.is_changing = False


def _slots_in_use(cache: StaticKVCache, batch_slot: int) -> SequenceTensors:
    """Return views of the buffers' used slots."""
    sequence = cache.sequences[batch_slot]
    views: SequenceTensors = {}
    for layer, by_group in cache.kv_heads.items():
        for index, kv_heads in enumerate(by_group):
            name = f"layer.{layer}.heads.{index}"
            num_cached = sequence.groups[kv_heads.group].state.num_cached
            num_moving = min(kv_heads.num_unrotated, num_cached)
            if kv_heads.unrotated_keys is not None:
                unrotated = kv_heads.unrotated_keys
                views |= _views(f"{name}.unrotated_keys", unrotated, batch_slot, 0, num_moving)
            if num_moving < num_cached:
                views |= _views(f"{name}.keys", kv_heads.keys, batch_slot, num_moving, num_cached)
            views |= _views(f"{name}.values", kv_heads.values, batch_slot, 0, num_cached)
    for layer, ring in cache.rings.items():
        num_cached = min(sequence.num_seen, ring.window)
        views |= _views(f"layer.{layer}.ring.keys", ring.keys, batch_slot, 0, num_cached)
        views |= _views(f"layer.{layer}.ring.values", ring.values, batch_slot, 0, num_cached)
    return views


def _views(name: str, buffer: Buffer, batch_slot: int, start: int, stop: int) -> SequenceTensors:
    stored = enumerate(buffer.tensors(batch_slot))
    return {f"{name}.{index}": tensor[:, start:stop] for index, tensor in stored}


def _restore(group: GroupState, name: str, remaining: "_Remaining") -> GatherPlan:
    counts = remaining.take(f"{name}.counts", (5,), torch.int64).tolist()
    *state, origin, num_compactions = counts
    shape = (group.original_positions().shape[0], state[1])
    positions = remaining.take(f"{name}.original_positions", shape, torch.int64)
    return group.restore(State(*state), origin, num_compactions, positions)


@final
class _Remaining:
    """The tensors of a sequence that are not restored yet."""

    def __init__(self, tensors: SequenceTensors) -> None:
        self._tensors = dict(tensors)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise InputError(f"the state has no {name}; export it from a cache of the same model")
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise InputError(
                f"{name} of the state is {tensor.dtype} {tuple(tensor.shape)}, and {dtype} {shape} "
                "is needed; export it from a cache of the same model, policy and types"
            )
        return tensor

    def validate_empty(self) -> None:
        if self._tensors:
            raise InputError(
                f"the state has {min(self._tensors)}, which this model and policy do not; export "
                "it from a cache of the same model and policy"
            )

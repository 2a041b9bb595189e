"""What one sequence holds, as plain tensors: out of a row, and into another."""

from typing import final

import torch
from torch import Tensor

from lacache.cache.static.buffer import Buffer
from lacache.cache.static.row_group import Move, RowGroup
from lacache.cache.static.store import StaticStore
from lacache.errors import InputError, UnsupportedOperationError
from lacache.policies.schedule import State

RowState = dict[str, Tensor]
"""By name, on the CPU; N is what the group, or the window, holds, whatever there is room for.

`group.0.counts`: num_seen, num_cached, cursor, origin and num_compactions, int64 [5].
`group.0.came_in_at`: positions at which the keys came in, int64 [patterns, N].
`layer.1.part.0.came_in.0`: keys as they came in [H, N, D], or as many tensors as the buffer stores;
`keys` instead of `came_in` where a layer has no positions. `values` likewise.
`layer.2.ring.keys.0`: of a layer whose attention is a window by itself. `values` likewise.
"""


def take_row(store: StaticStore, row: int) -> RowState:
    """Copies of all that a row holds. Nothing of it is rotated, and nothing unused is in it.

    Raises:
        UnsupportedOperationError: the last change of the row was interrupted half-way.
    """
    counts = store.rows[row]
    if counts.is_moving:
        raise UnsupportedOperationError(
            "the last change of this sequence was interrupted half-way, so its layers hold "
            "different tokens and it cannot be saved; close it, and read its text again"
        )
    for parts in store.parts.values():
        for part in parts:
            group = counts.groups[part.group]
            if part.came_in is not None:
                # The next move would do this first, and may do it again.
                part.came_in.copy_row(row, group.num_saved, group.state.num_cached, part.keys)
    state = {}
    for number, group in enumerate(counts.groups):
        numbers = (*group.state, group.origin, group.num_compactions)
        state[f"group.{number}.counts"] = torch.tensor(numbers)
        state[f"group.{number}.came_in_at"] = group.came_in_at()
    state |= _slots_in_use(store, row)
    return {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def put_row(store: StaticStore, row: int, state: RowState) -> None:
    """Fill a cleared row. Keys are rotated to their slots as by the last compaction, bit for bit.

    Raises:
        InputError: the state is not one of a row of this store; clear the row then.
    """
    left = _Left(state)
    counts = store.rows[row]
    counts.is_moving = True
    moves = [_restore(group, f"group.{n}", left) for n, group in enumerate(counts.groups)]
    for name, slots in _slots_in_use(store, row).items():
        slots.copy_(left.take(name, tuple(slots.shape), slots.dtype))
    left.validate_empty()
    for number, move in enumerate(moves):
        store.move_group(row, number, move)
    counts.is_moving = False


def _slots_in_use(store: StaticStore, row: int) -> RowState:
    """Views of what the buffers hold of a row."""
    counts = store.rows[row]
    views: RowState = {}
    for layer, parts in store.parts.items():
        for number, part in enumerate(parts):
            name = f"layer.{layer}.part.{number}"
            held = counts.groups[part.group].state.num_cached
            if part.came_in is None:
                views |= _of_buffer(f"{name}.keys", part.keys, row, held)
            else:
                views |= _of_buffer(f"{name}.came_in", part.came_in, row, held)
            views |= _of_buffer(f"{name}.values", part.values, row, held)
    for layer, ring in store.rings.items():
        held = min(counts.num_seen, ring.window)
        views |= _of_buffer(f"layer.{layer}.ring.keys", ring.keys, row, held)
        views |= _of_buffer(f"layer.{layer}.ring.values", ring.values, row, held)
    return views


def _of_buffer(name: str, buffer: Buffer, row: int, held: int) -> RowState:
    stored = enumerate(buffer.tensors())
    return {f"{name}.{number}": tensor[row, :, :held] for number, tensor in stored}


def _restore(group: RowGroup, name: str, left: "_Left") -> Move:
    *state, origin, num_compactions = left.take(f"{name}.counts", (5,), torch.int64).tolist()
    num_patterns = group.came_in_at().shape[0]
    came_in_at = left.take(f"{name}.came_in_at", (num_patterns, state[1]), torch.int64)
    return group.restore(State(*state), origin, num_compactions, came_in_at)


@final
class _Left:
    """What of a state nobody has taken yet."""

    def __init__(self, state: RowState) -> None:
        self._tensors = dict(state)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise InputError(f"the state has no {name}; take it from a row of the same model")
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise InputError(
                f"{name} of the state is {tensor.dtype} {tuple(tensor.shape)}, and {dtype} {shape} "
                "is needed; take it from a row of the same model, plan and types"
            )
        return tensor

    def validate_empty(self) -> None:
        if self._tensors:
            raise InputError(
                f"the state has {min(self._tensors)}, which this model and plan do not; take it "
                "from a row of the same model and plan"
            )

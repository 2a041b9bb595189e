"""The buffers of all layers and rows, and the forwards that read and write them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from transformers import Cache

from lacache.cache.static.attention import Attend
from lacache.cache.static.buffer import Buffer, PlainBuffer
from lacache.cache.static.compactions import Compactions
from lacache.cache.static.layers import (
    CausalMasks,
    ReadLayer,
    ReadRing,
    StepInputs,
    StepLayer,
    StepRing,
)
from lacache.cache.static.mover import Mover, TorchMover
from lacache.cache.static.part import Part
from lacache.cache.static.quantized import KV_DTYPES, ScaledBuffer
from lacache.cache.static.row import Row
from lacache.cache.static.row_group import Move
from lacache.cache.static.shape import StaticShape
from lacache.cache.static.sliding import Ring
from lacache.cache.static.turns import Turns
from lacache.common.memory import physical_bytes
from lacache.errors import ConfigError
from lacache.models.rotary import Rotation, Tables


@final
class StaticStore:
    """Keys and values of `rows` sequences, each at its own place in its own text.

    A forward is bracketed: `begin_step` or `begin_read` gives the cache for one call of the model,
    and `commit` counts what came in. What an interrupted call wrote lies in slots that nobody
    sees, so the call can be made again.

    Args:
        shape: of the model and the plan.
        rows: how many sequences fit.
        attend: how the model attends.
        device: where the buffers are.
        mover: how compactions move what is stored; None is with torch's operators.
    """

    # Else what is made in inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def __init__(
        self,
        shape: StaticShape,
        rows: int,
        attend: Attend,
        device: torch.device,
        mover: Mover | None = None,
    ) -> None:
        self.shape = shape
        self.device = device
        self._attend = attend
        self.mover = mover or TorchMover()
        self._compactions = [Compactions(bound.schedule) for bound in shape.groups]
        self._reading: list[ReadRing] = []
        try:
            # Some systems promise more than they have, and kill who takes it.
            most = physical_bytes() if device.type == "cpu" else sys.maxsize
            if rows * shape.row_bytes > most:
                raise MemoryError(f"{most:,} bytes are there")
            self.parts: dict[int, tuple[Part, ...]] = self._make_parts(rows)
            self.rings = {
                layer.index: Ring(layer, rows, shape.info.dtype, device)
                for layer in shape.info.sliding
            }
        except (RuntimeError, MemoryError, OverflowError) as error:
            raise ConfigError(
                f"max_sequences={rows} of {shape.row_bytes:,} bytes each need "
                f"{rows * shape.row_bytes:,} bytes, which could not be allocated on {device}; try "
                "fewer sequences or a smaller budget"
            ) from error
        self.rows = [self._new_row() for _ in range(rows)]
        self._inputs = self._make_inputs()
        self._fix_addresses()
        self._step_cache = self._make_cache(
            lambda parts: StepLayer(attend, parts, self._inputs),
            lambda ring: StepRing(attend, ring, self._inputs),
        )

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.num_bytes for buffer in self._buffers())

    def clear(self, row: int) -> None:
        """Forget a sequence; its slots are free for another."""
        self.rows[row] = self._new_row()
        for buffer in self._buffers():
            buffer.clear_row(row)

    def begin_read(self, row: int, num_new: int) -> tuple[Cache, Tensor]:
        """Prepare to read `num_new` tokens of a row, at most its `room()`.

        Returns:
            A cache for one forward, and the positions [1, Q] of the tokens.
        """
        self._move(row)
        counts = self.rows[row]
        num_cached = tuple(group.state.num_cached for group in counts.groups)
        first = counts.next_position()
        masks = CausalMasks(self.device)
        cache = self._make_cache(
            lambda parts: ReadLayer(self._attend, parts, masks, row, num_cached),
            lambda ring: ReadRing(self._attend, ring, masks, row, counts.num_seen),
        )
        self._reading = [layer for layer in cache.layers if isinstance(layer, ReadRing)]
        return cache, torch.arange(first, first + num_new, device=self.device)[None]

    def begin_step(self, active: Sequence[int]) -> tuple[Cache, Tensor]:
        """Prepare to add one token to each of the rows `active`.

        Returns:
            The cache for the forward, always the same one, and the positions [rows, 1].
        """
        for row in active:
            self._move(row)
        self._reading = []
        inputs = self._inputs
        is_active = set(active)
        _set(inputs.active, [row in is_active for row in range(len(self.rows))])
        _set(inputs.positions, [[row.next_position()] for row in self.rows])
        for number, slots in enumerate(inputs.slots):
            last = inputs.visible[number].shape[-1] - 1
            held = [row.groups[number].state.num_cached for row in self.rows]
            _set(slots, [min(slot, last) for slot in held])
            _show_up_to(inputs.visible[number], slots)
        for window, slots in inputs.ring_slots.items():
            # All are visible once the window is full.
            _set(slots, [min(row.num_seen, window) for row in self.rows])
            _show_up_to(inputs.ring_visible[window], slots)
            _set(slots, [row.num_seen % window for row in self.rows])
        return self._step_cache, inputs.positions

    def commit(self, row: int, num_new: int) -> None:
        """Count tokens that a forward brought to a row."""
        counts = self.rows[row]
        counts.is_moving = True
        for ring in self._reading:
            ring.keep()
        self._reading = []
        counts.commit(num_new)
        counts.is_moving = False

    def fork(self, row: int, target: int) -> None:
        """Copy a sequence to another row."""
        copy = self.rows[row].copy()
        for part in self._all_parts():
            for buffer in part.buffers:
                buffer.fork_row(row, target, copy.groups[part.group].state.num_cached)
        for ring in self.rings.values():
            ring.fork_row(row, target)
        self.rows[target] = copy

    def _move(self, row: int) -> None:
        counts = self.rows[row]
        for number, move in enumerate(counts.begin()):
            if move is not None:
                self.move_group(row, number, move)
        counts.is_moving = False

    def move_group(self, row: int, number: int, move: Move) -> None:
        """Do in every layer of a group what its counts ask."""
        tables: dict[tuple[int, int], Tables] = {}
        if move.surviving is not None:
            move = replace(move, surviving=move.surviving.to(self.device))
        for part in self._all_parts():
            if part.group != number:
                continue
            if part.turns is None:
                part.move(row, move, None)
                continue
            key = (part.pattern, id(part.turns))
            if key not in tables:
                start, stop = move.turned[part.pattern]
                tables[key] = part.turns.tables(move.shifts[part.pattern, start:stop])
            part.move(row, move, tables[key])

    def _fix_addresses(self) -> None:
        """Tell the compiler that nothing that a step reads or writes ever moves in memory.

        CUDA graphs are given up for a step that writes to any other input.
        """
        inputs = self._inputs
        by_window = (*inputs.ring_slots.values(), *inputs.ring_visible.values())
        ours = (inputs.positions, inputs.active, *inputs.slots, *inputs.visible, *by_window)
        for tensor in (*ours, *(t for buffer in self._buffers() for t in buffer.tensors())):
            torch._dynamo.mark_static_address(tensor)

    def _new_row(self) -> Row:
        return Row(self._compactions, count_on=self.shape.info.has_native)

    def _all_parts(self) -> list[Part]:
        return [part for parts in self.parts.values() for part in parts]

    def _buffers(self) -> list[Buffer]:
        rings = [b for ring in self.rings.values() for b in (ring.keys, ring.values)]
        return [*rings, *(buffer for part in self._all_parts() for buffer in part.buffers)]

    def _make_parts(self, num_rows: int) -> dict[int, tuple[Part, ...]]:
        info, kv_dtype = self.shape.info, self.shape.kv_dtype
        reach = max(compactions.schedule.capacity for compactions in self._compactions)
        turns: dict[tuple[Rotation, int], Turns] = {}
        made: dict[int, tuple[Part, ...]] = {}
        for number, bound in enumerate(self.shape.groups):
            patterns = self._compactions[number].patterns
            for depth, heads in bound.heads.items():
                layer = info.growing[depth]
                shape = (num_rows, len(heads), bound.schedule.capacity)

                def buffer(size: int, shape: tuple[int, int, int] = shape) -> Buffer:
                    whole = (*shape, size)
                    if kv_dtype is None:
                        return PlainBuffer(whole, info.dtype, self.device)
                    return ScaledBuffer(whole, KV_DTYPES[kv_dtype], info.dtype, self.device)

                rotation, key_size = layer.rotation, layer.key_size
                if rotation is not None and (rotation, key_size) not in turns:
                    turns[rotation, key_size] = Turns(rotation, key_size, reach, self.device)
                part = Part(
                    group=number,
                    heads=heads,
                    pattern=patterns.index(bound.pattern(depth)),
                    keys=buffer(key_size),
                    values=buffer(layer.value_size),
                    came_in=None if rotation is None else buffer(key_size),
                    turns=None if rotation is None else turns[rotation, key_size],
                    mover=self.mover,
                )
                made[layer.index] = (*made.get(layer.index, ()), part)
        return made

    def _make_inputs(self) -> StepInputs:
        rows = len(self.rows)

        def longs(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=self.device)

        def bools(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.bool, device=self.device)

        capacities = [c.schedule.capacity for c in self._compactions]
        windows = sorted({ring.window for ring in self.rings.values()})
        return StepInputs(
            positions=longs(rows, 1),
            active=bools(rows),
            slots=tuple(longs(rows) for _ in capacities),
            visible=tuple(bools(rows, 1, 1, capacity) for capacity in capacities),
            ring_slots={window: longs(rows) for window in windows},
            ring_visible={window: bools(rows, 1, 1, window) for window in windows},
        )

    def _make_cache(self, of_parts: Any, of_ring: Any) -> Cache:
        """A cache with a layer for each of the model's that has keys and values of its own."""
        empty: list[Any] = _native_layers(self.shape.info.text_config)
        layers: list[Any] = [
            of_parts(self.parts[index])
            if index in self.parts
            else of_ring(self.rings[index])
            if index in self.rings
            else layer
            for index, layer in enumerate(empty)
        ]
        return Cache(layers=layers)


def _native_layers(config: Any) -> list[Any]:
    from transformers import DynamicCache

    return list(DynamicCache(config=config).layers)


def _set(target: Tensor, numbers: list[Any]) -> None:
    """Fill a tensor, and do not wait for a GPU that is busy."""
    source = torch.tensor(numbers, dtype=target.dtype, pin_memory=target.is_cuda)
    target.copy_(source, non_blocking=True)


def _show_up_to(visible: Tensor, last: Tensor) -> None:
    """Show the slots [B, 1, 1, C] up to the last of each row [B]."""
    slots = torch.arange(visible.shape[-1], device=visible.device)
    visible.copy_((slots <= last[:, None])[:, None, None])

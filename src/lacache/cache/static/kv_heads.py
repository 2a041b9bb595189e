"""KV heads of one layer and head group: their buffers, compactions and rotations."""

from copy import deepcopy
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lacache.cache.group_state import GatherPlan
from lacache.cache.static.compaction_ops import CompactionOps
from lacache.cache.static.storage import Buffer
from lacache.errors import UnsupportedModelError
from lacache.models.rotary import RotaryTables, Rotation


@final
class Rotations:
    """Cosines and sines that rotate keys by whole numbers of positions.

    Models differ in which numbers of a key are rotated, in how these are paired, and in the shape
    of their tables. The model's own rotary function is probed once, and the result stored in
    tables as wide as a key: a number becomes its cosine times itself plus its sine times its
    partner.

    Args:
        rotation: the model's rotary embedding.
        size: D of a key.
        reach: the largest distance to tabulate; larger ones are computed on demand.
        device: where the keys are.

    Raises:
        UnsupportedModelError: the model does not rotate the numbers of a key in pairs.
    """

    def __init__(self, rotation: Rotation, size: int, reach: int, device: torch.device) -> None:
        # The owner may cast the model, which rounds frequencies.
        self._rotation = deepcopy(rotation)
        self._size = size
        self._reach = reach
        self._device = device
        self.partners = self._find_partners()
        """For each of the D numbers of a key, the index of its partner [D]."""
        self._cosines, self._sines = self._compute(torch.arange(-reach, reach + 1, device=device))

    def tables(self, shifts: Tensor) -> RotaryTables:
        """Return cosines and signed sines, each [N, D], for `shifts` [N] on the CPU."""
        if len(shifts) and int(shifts.abs().max()) > self._reach:
            return self._compute(shifts.to(self._device))
        indices = (shifts + self._reach).to(self._device)
        return self._cosines[indices], self._sines[indices]

    def _compute(self, shifts: Tensor) -> RotaryTables:
        cos, sin = self._rotation.tables(shifts)
        ones = torch.ones(1, 1, len(shifts), self._size, device=self._device)
        cosines = self._rotation.rotate(ones, (cos, torch.zeros_like(sin)))
        # Numbers that are not rotated pass through, whatever the tables contain.
        passed = self._rotation.rotate(ones, (torch.zeros_like(cos), torch.zeros_like(sin)))
        sines = self._rotation.rotate(ones, (torch.zeros_like(cos), sin)) - passed
        return cosines[0, 0].contiguous(), sines[0, 0].contiguous()

    def _find_partners(self) -> Tensor:
        size = self._size
        cos, sin = self._rotation.tables(torch.zeros(size, dtype=torch.long, device=self._device))
        each = torch.eye(size, device=self._device)[None, None]
        kept = self._rotation.rotate(each, (torch.ones_like(cos), torch.zeros_like(sin)))
        # From each number to where it is added, with its sign; itself, where it is not rotated.
        added = self._rotation.rotate(each, (torch.zeros_like(cos), torch.ones_like(sin)))[0, 0]
        pairs = added.abs()
        one = torch.ones(size, device=self._device)
        if not (
            torch.equal(kept, each)
            and torch.equal(pairs @ pairs, each[0, 0])
            and torch.equal(pairs.sum(0), one)
        ):
            raise UnsupportedModelError(
                f"the model's rotary function does not rotate the {size} numbers of a key in "
                "pairs, which the engine needs; use LaCache(model, budget=512) and "
                "lacache.stream with this model"
            )
        return pairs.argmax(dim=0)


@final
@dataclass(frozen=True)
class PlanTables:
    """Rotary tables of a gather plan for the heads of one pattern.

    Args:
        unrotated: for `GatherPlan.to_rotate`; None in layers without positions.
        in_place: for `GatherPlan.in_place`; None, too, where nothing is renumbered.
    """

    unrotated: RotaryTables | None
    in_place: RotaryTables | None


@final
@dataclass(frozen=True)
class KVHeads:
    """Keys and values of the KV heads of one layer that are in one head group.

    Keys are stored as attention reads them. Those that move are stored unrotated besides
    (docs/adr/0009, 0022), and every gather plan rotates them anew from there: the sinks where keys
    stand at original positions, all of them where they stand at their slots, none in layers
    without positions.
    """

    group: int
    """Index of the head group."""
    heads: tuple[int, ...]
    """Indices of these heads among the layer's KV heads."""
    pattern: int
    """Index of the layer's pattern in the tables of the head group."""
    keys: Buffer
    """Keys at their positions."""
    values: Buffer
    unrotated_keys: Buffer | None
    """The first slots' keys as the model gave them, up to `GroupState.num_saved`."""
    num_unrotated: int
    """Number of first slots whose keys move, which are among the unrotated keys."""
    rotations: Rotations | None
    ops: CompactionOps

    def save(self, batch_slot: int, num_saved: int, num_cached: int) -> None:
        """Copy the unrotated keys of slots `num_saved` to `num_cached` that are in `keys` only."""
        stop = min(num_cached, self.num_unrotated)
        if self.unrotated_keys is not None and num_saved < stop:
            self.unrotated_keys.copy_slots(batch_slot, num_saved, stop, self.keys)

    def plan_tables(self, plan: GatherPlan) -> PlanTables:
        """Return the tables of a plan, which heads with the same pattern and rotations share."""
        if self.rotations is None:
            return PlanTables(None, None)
        start, stop = plan.to_rotate[self.pattern]
        in_place = None
        if plan.in_place is not None:
            in_place = self.rotations.tables(plan.in_place[self.pattern, self.num_unrotated :])
        return PlanTables(self.rotations.tables(plan.shifts[self.pattern, start:stop]), in_place)

    def apply(
        self, batch_slot: int, plan: GatherPlan, tables: PlanTables, sources: Tensor | None
    ) -> None:
        """Apply a gather plan to one batch slot.

        Args:
            batch_slot: the batch slot.
            plan: the plan.
            tables: of the plan.
            sources: of the plan, where the keys are.
        """
        self.save(batch_slot, plan.num_saved, plan.num_cached)
        start, stop = plan.to_rotate[self.pattern]
        if sources is not None:
            slots, first = sources[self.pattern], plan.first_changed[self.pattern]
            self._gather(self.values, batch_slot, slots, first)
            if self.unrotated_keys is not None:
                self._gather(self.unrotated_keys, batch_slot, slots[: self.num_unrotated], first)
                # The keys before are rotated below.
                first = max(first, stop)
            self._gather(self.keys, batch_slot, slots, first)
        if tables.in_place is not None:
            self._rotate(self.keys, batch_slot, self.num_unrotated, tables.in_place)
        if self.unrotated_keys is not None and tables.unrotated is not None:
            self._rotate(self.unrotated_keys, batch_slot, start, tables.unrotated)

    def insert(self, batch_slot: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [1, H, Q, D] to a batch slot, from `slot` on."""
        self.keys.write(batch_slot, slot, keys)
        self.values.write(batch_slot, slot, values)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All buffers: keys, values and, where keys move, unrotated keys."""
        unrotated = () if self.unrotated_keys is None else (self.unrotated_keys,)
        return (self.keys, self.values, *unrotated)

    def _rotate(self, source: Buffer, batch_slot: int, start: int, tables: RotaryTables) -> None:
        """Set keys from slot `start` on to those of a buffer, rotated by tables."""
        if self.rotations is None or not len(tables[0]):
            return
        keys = source.read_wide(batch_slot, start + len(tables[0]), start)
        rotated = self.ops.rotate(keys, *tables, self.rotations.partners)
        self.keys.write(batch_slot, start, rotated)

    def _gather(self, buffer: Buffer, batch_slot: int, slots: Tensor, start: int) -> None:
        if start < len(slots):
            for stored in buffer.tensors(batch_slot):
                self.ops.gather(stored, slots, start)


@final
class SharedPlan:
    """A gather plan that is applied to many KV heads, and the rotary tables that they share.

    Args:
        plan: the plan.
        device: where the KV heads are.
        keeps_tables: whether tables are kept for the next heads with the same pattern.
    """

    def __init__(self, plan: GatherPlan, device: torch.device, *, keeps_tables: bool) -> None:
        self._plan = plan
        self._sources = None if plan.sources is None else plan.sources.to(device)
        self._keeps_tables = keeps_tables
        self._tables: dict[tuple[int, int], PlanTables] = {}

    def apply(self, kv_heads: KVHeads, batch_slot: int) -> None:
        """Apply the plan to one batch slot of KV heads."""
        key = (kv_heads.pattern, id(kv_heads.rotations))
        tables = self._tables.get(key)
        if tables is None:
            tables = kv_heads.plan_tables(self._plan)
            if self._keeps_tables:
                self._tables[key] = tables
        kv_heads.apply(batch_slot, self._plan, tables, self._sources)

"""The keys and values of a layer, or of some of its KV heads, for every row."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lacache.cache.static.buffer import Buffer
from lacache.cache.static.mover import Mover
from lacache.cache.static.row_group import Move
from lacache.cache.static.turns import Turns
from lacache.models.rotary import Tables


@final
@dataclass(frozen=True)
class Part:
    """Heads with one pattern of one group.

    Keys are held twice (docs/adr/0009): as they came in, which is never rotated again, and as
    attention reads them, which is made anew from the first whenever keys move. A layer without
    positions has only one of both.
    """

    group: int
    """Number of the group."""
    heads: tuple[int, ...]
    """Which of the layer's KV heads."""
    pattern: int
    """Which row of the group's tables."""
    keys: Buffer
    """Rotated to their slots."""
    values: Buffer
    came_in: Buffer | None
    """Keys as the model gave them; but of slots since the last move only `keys` has them."""
    turns: Turns | None
    mover: Mover

    def move(self, row: int, move: Move, tables: Tables | None) -> None:
        """Do what a compaction or other positions ask; `tables` are for the keys that turn."""
        start, stop = move.turned[self.pattern]
        if self.came_in is not None:
            self.came_in.copy_row(row, move.unsaved, move.num_cached, self.keys)
        if move.surviving is not None:
            slots = move.surviving[self.pattern]
            self._keep(self.values, row, slots, start)
            if self.came_in is not None:
                self._keep(self.came_in, row, slots, start)
            self._keep(self.keys, row, slots, start if self.came_in is None else stop)
        if self.came_in is None or self.turns is None or tables is None or start == stop:
            return
        came_in = self.came_in.read(row, stop, start)
        self.keys.write(row, start, self.mover.turn(came_in, *tables, self.turns.partners))

    def insert(self, row: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Add new keys and values [1, H, Q, D] of one row from `slot` on."""
        self.keys.write(row, slot, keys)
        self.values.write(row, slot, values)

    def insert_one(self, slots: Tensor, active: Tensor, keys: Tensor, values: Tensor) -> None:
        """Add a new key and value [B, H, 1, D] to each active row, each at its slot."""
        self.keys.write_one(slots, active, keys)
        self.values.write_one(slots, active, values)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All that is stored."""
        came_in = () if self.came_in is None else (self.came_in,)
        return (self.keys, self.values, *came_in)

    def _keep(self, buffer: Buffer, row: int, slots: Tensor, start: int) -> None:
        if start < len(slots):
            for stored in buffer.tensors():
                self.mover.keep(stored[row], slots, start)

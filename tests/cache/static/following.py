"""What follows a part through a text, and checks it against one that is made anew."""

import torch
from torch import Tensor

from lacache.cache.static.buffer import Buffer, PlainBuffer
from lacache.cache.static.compactions import Compactions
from lacache.cache.static.mover import Mover
from lacache.cache.static.part import Part
from lacache.cache.static.quantized import KV_DTYPES, ScaledBuffer
from lacache.cache.static.row_group import Move, RowGroup
from lacache.cache.static.turns import Turns
from lacache.models.model_info import model_info
from lacache.models.rotary import Rotation
from lacache.policies import Ladder, Schedule, Streaming
from tests.cache.tiny_models import tiny_model
from tests.policies.sized import Sized

CPU = torch.device("cpu")
HEADS, SIZE, ROW = 2, 8, 1
POSITIONS = ("slots", "counted", "shared")
TIGHT: dict[str, Sized] = {
    "ladder": (14, Ladder(span=2, sinks=2, recent=4, evict_batch=1)),
    # All its keys change slots, and where positions count on, none of them turns.
    "window": (9, Streaming(sinks=0, evict_batch=1)),
}
"""They compact before every token."""


def rotation() -> Rotation:
    found = model_info(tiny_model("llama")).growing[0].rotation
    assert found is not None
    return found


ROTATION = rotation()
TURNS = Turns(ROTATION, SIZE, 12, CPU)


def buffer(slots: int, stored_in: str | None, dtype: torch.dtype) -> Buffer:
    shape = (2, HEADS, slots, SIZE)
    if stored_in is None:
        return PlainBuffer(shape, dtype, CPU)
    return ScaledBuffer(shape, KV_DTYPES[stored_in], dtype, CPU)


def equal(buffer: Buffer, other: Buffer, stop: int) -> bool:
    """Without any tolerance, in the slots in use."""
    return torch.equal(buffer.read(ROW, stop), other.read(ROW, stop))


class Slow:
    """Tokens of one pattern in a list, written anew into empty buffers whenever it is asked."""

    def __init__(self, part: Part, make: tuple[int, str | None, torch.dtype]) -> None:
        self.part = part
        self.make = make
        self.tokens: list[tuple[Tensor, Tensor, int]] = []

    def buffers(self, origin: int) -> list[Buffer]:
        """Keys, values, and keys as they came in."""
        keys, values, came_in = (buffer(*self.make) for _ in range(3))
        for slot, (key, value, _) in enumerate(self.tokens):
            came_in.write(ROW, slot, key)
            values.write(ROW, slot, value)
        stood = torch.tensor([came_in_at for _, _, came_in_at in self.tokens], dtype=torch.long)
        anew = came_in.read(ROW, len(stood))
        if self.part.turns is not None:
            shifts = origin + torch.arange(len(stood)) - stood
            anew = ROTATION.rotate(anew, ROTATION.tables(shifts))
        keys.write(ROW, 0, anew)
        return [keys, values, came_in]

    def check(self, origin: int, unsaved: int) -> None:
        keys, values, came_in = self.buffers(origin)
        assert equal(self.part.keys, keys, len(self.tokens))
        assert equal(self.part.values, values, len(self.tokens))
        if self.part.came_in is not None:
            assert equal(self.part.came_in, came_in, unsaved)


def apply(part: Part, move: Move) -> None:
    """As the store does it."""
    tables = None
    if part.turns is not None:
        start, stop = move.turned[part.pattern]
        tables = part.turns.tables(move.shifts[part.pattern, start:stop])
    part.move(ROW, move, tables)


def make_part(
    pattern: int, make: tuple[int, str | None, torch.dtype], mover: Mover, *, turns: bool
) -> Part:
    return Part(
        group=0,
        heads=tuple(range(HEADS)),
        pattern=pattern,
        keys=buffer(*make),
        values=buffer(*make),
        came_in=buffer(*make) if turns else None,
        turns=TURNS if turns else None,
        mover=mover,
    )


def follow(
    schedule: Schedule,
    positions: str,
    pieces: list[int],
    stored_in: str | None,
    dtype: torch.dtype,
    mover: Mover,
) -> None:
    """Tokens in pieces; `positions` says where each piece stands."""
    compactions = Compactions(schedule)
    group = RowGroup(compactions)
    make = (schedule.capacity, stored_in, dtype)
    slow = [
        Slow(make_part(pattern, make, mover, turns=turns), make)
        for pattern in range(len(compactions.patterns))
        for turns in (True, False)
    ]
    generator = torch.Generator().manual_seed(len(pieces))
    for number, wanted in enumerate(pieces):
        num_new = min(wanted, group.room())
        settled = group.settled()
        first = {
            "slots": settled.num_cached,
            "counted": settled.num_seen,
            # Back and forth, as where a larger group compacts too.
            "shared": settled.num_cached + (settled.num_seen + number) % 4,
        }[positions]
        move = group.begin(first)
        if move is not None:
            for one in slow:
                if move.surviving is not None:
                    kept = move.surviving[one.part.pattern]
                    one.tokens = [one.tokens[slot] for slot in kept]
                apply(one.part, move)
        slot = group.state.num_cached
        for one in slow:
            shape = (1, HEADS, num_new, SIZE)
            keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
            one.part.insert(ROW, slot, keys, values)
            for n in range(num_new):
                new = slice(n, n + 1)
                one.tokens.append((keys[:, :, new], values[:, :, new], first + n))
        group.commit(num_new)
        for one in slow:
            one.check(group.origin, group.num_saved)
    held = group.state.num_cached
    other = RowGroup(compactions)
    restored = other.restore(group.state, group.origin, group.num_compactions, group.came_in_at())
    for one in slow:
        if one.part.came_in is None:
            continue
        anew = make_part(one.part.pattern, make, mover, turns=True)
        assert anew.came_in is not None
        _, values, came_in = one.buffers(group.origin)
        anew.came_in.copy_row(ROW, 0, held, came_in)
        anew.values.copy_row(ROW, 0, held, values)
        apply(anew, restored)
        assert equal(anew.keys, one.part.keys, held)
        assert equal(anew.values, values, held)

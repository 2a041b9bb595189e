"""KV heads over a whole sequence, checked against buffers that are filled from scratch."""

import torch
from torch import Tensor

from lacache.cache.codecs import find_codecs
from lacache.cache.group_state import CompactionTables, GatherPlan, GroupState
from lacache.cache.static.compaction_ops import CompactionOps
from lacache.cache.static.kv_heads import KVHeads, Rotations
from lacache.cache.static.storage import Buffer, fixed_buffer
from lacache.models.model_info import model_info
from lacache.models.rotary import Rotation
from lacache.policies import Ladder, Schedule, Streaming
from tests.cache.drawn_positions import Positions
from tests.cache.tiny_models import tiny_model
from tests.policies.sized import Sized

CPU = torch.device("cpu")
HEADS, SIZE, BATCH_SLOT = 2, 8, 1
POSITIONS = ("slots", "counted", "far")
TIGHT: dict[str, Sized] = {
    "ladder": (14, Ladder(span=2, sinks=2, recent=4, evict_batch=1)),
    # All its keys change slots, and where positions count on, none of them is rotated.
    "window": (9, Streaming(sinks=0, evict_batch=1)),
    "ladder at slots": (
        14,
        Ladder(span=2, sinks=2, recent=4, evict_batch=1, positions="slots"),
    ),
}
"""They compact before every token."""


def rotation() -> Rotation:
    found = model_info(tiny_model("llama")).growing[0].rotation
    assert found is not None
    return found


ROTATION = rotation()
ROTATIONS = Rotations(ROTATION, SIZE, 12, CPU)


def buffer(slots: int, stored_in: str | None, dtype: torch.dtype) -> Buffer:
    return fixed_buffer((2, HEADS, slots, SIZE), find_codecs(stored_in, dtype)[0], CPU)


def equal(buffer: Buffer, other: Buffer, stop: int) -> bool:
    """Return whether the slots in use are equal, bit for bit."""
    return torch.equal(buffer.read(BATCH_SLOT, stop), other.read(BATCH_SLOT, stop))


class Slow:
    """A list of the tokens of one pattern, written into empty buffers at every check.

    Args:
        heads: what is checked.
        make: how its buffers are made.
        schedule: with the sinks, and whether keys stand at their slots.
    """

    def __init__(
        self, heads: KVHeads, make: tuple[int, str | None, torch.dtype], schedule: Schedule
    ) -> None:
        self.heads = heads
        self.make = make
        self.sinks = schedule.sinks
        self.by_slot = schedule.positions == "slots"
        self.tokens: list[tuple[Tensor, Tensor, int]] = []

    def renumber(self, origin: int) -> None:
        """Rotate all but the sinks to their slots, from where they stand."""
        for slot, (key, value, stood) in enumerate(self.tokens):
            if slot >= self.sinks:
                one = buffer(1, *self.make[1:])
                one.write(BATCH_SLOT, 0, key)
                shift = torch.tensor([origin + slot - stood])
                if self.heads.rotations is not None:
                    key = ROTATION.rotate(one.read_wide(BATCH_SLOT, 1), ROTATION.tables(shift))
                self.tokens[slot] = (key, value, origin + slot)

    def buffers(self, origin: int) -> list[Buffer]:
        """Return rotated keys, values and unrotated keys."""
        keys, values, unrotated = (buffer(*self.make) for _ in range(3))
        for slot, (key, value, _) in enumerate(self.tokens):
            unrotated.write(BATCH_SLOT, slot, key)
            values.write(BATCH_SLOT, slot, value)
        stood = torch.tensor([position for _, _, position in self.tokens], dtype=torch.long)
        stand = origin + torch.arange(len(stood))
        if not self.by_slot:
            stand = stood.clone()
            for sink in range(self.sinks if len(stood) > self.sinks else 0):
                stand[sink] = stood[self.sinks] - self.sinks + sink
        for slot, (key, _, _) in enumerate(self.tokens):
            anew = unrotated.read_wide(BATCH_SLOT, slot + 1, slot)
            if self.heads.rotations is None or stand[slot] == stood[slot]:
                anew = key
            else:
                shift = stand[slot : slot + 1] - stood[slot]
                anew = ROTATION.rotate(anew, ROTATION.tables(shift))
            keys.write(BATCH_SLOT, slot, anew)
        return [keys, values, unrotated]

    def check(self, origin: int, num_saved: int) -> None:
        keys, values, unrotated = self.buffers(origin)
        assert equal(self.heads.keys, keys, len(self.tokens))
        assert equal(self.heads.values, values, len(self.tokens))
        if self.heads.unrotated_keys is not None:
            saved = min(num_saved, self.heads.num_unrotated)
            assert equal(self.heads.unrotated_keys, unrotated, saved)


def apply(kv_heads: KVHeads, plan: GatherPlan) -> None:
    """Apply a gather plan as the static cache does."""
    kv_heads.apply(BATCH_SLOT, plan, kv_heads.plan_tables(plan), plan.sources)


def make_kv_heads(
    pattern: int,
    make: tuple[int, str | None, torch.dtype],
    ops: CompactionOps,
    num_unrotated: int,
    *,
    rotates: bool,
) -> KVHeads:
    return KVHeads(
        group=0,
        heads=tuple(range(HEADS)),
        pattern=pattern,
        keys=buffer(*make),
        values=buffer(*make),
        unrotated_keys=buffer(num_unrotated, *make[1:]) if rotates and num_unrotated else None,
        num_unrotated=num_unrotated if rotates else 0,
        rotations=ROTATIONS if rotates else None,
        ops=ops,
    )


def follow(
    schedule: Schedule,
    positions: str,
    chunks: list[int],
    stored_in: str | None,
    dtype: torch.dtype,
    ops: CompactionOps,
) -> None:
    """Insert chunks of tokens at `positions`, and check the buffers after each."""
    tables_of = CompactionTables(schedule)
    group = GroupState(tables_of)
    make = (schedule.capacity, stored_in, dtype)
    moving = schedule.capacity if schedule.positions == "slots" else schedule.sinks
    slow = [
        Slow(make_kv_heads(pattern, make, ops, moving, rotates=rotates), make, schedule)
        for pattern in range(len(tables_of.patterns))
        for rotates in (True, False)
    ]
    where = Positions(schedule)
    generator = torch.Generator().manual_seed(len(chunks))
    for number, wanted in enumerate(chunks):
        num_new = min(wanted, group.room())
        # Back and forth, as where a larger group compacts too.
        far = (group.state.num_seen + number) % 4
        first, renumber = where.draw(group.state, positions, positions != "slots", far)
        compacts = schedule.is_full(group.state)
        plan = group.begin(first, renumber=renumber)
        if plan is not None:
            for one in slow:
                if plan.sources is not None:
                    kept = plan.sources[one.heads.pattern]
                    one.tokens = [one.tokens[slot] for slot in kept]
                if renumber and compacts and not one.by_slot:
                    one.renumber(group.origin)
                apply(one.heads, plan)
        slot = group.state.num_cached
        for one in slow:
            shape = (1, HEADS, num_new, SIZE)
            keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
            one.heads.insert(BATCH_SLOT, slot, keys, values)
            for n in range(num_new):
                new = slice(n, n + 1)
                one.tokens.append((keys[:, :, new], values[:, :, new], first + n))
        group.commit(num_new)
        for one in slow:
            one.check(group.origin, group.num_saved)
    held = group.state.num_cached
    other = GroupState(tables_of)
    restored = other.restore(
        group.state, group.origin, group.num_compactions, group.original_positions()
    )
    for one in slow:
        if one.heads.unrotated_keys is None:
            continue
        anew = make_kv_heads(one.heads.pattern, make, ops, moving, rotates=True)
        assert anew.unrotated_keys is not None
        keys, values, unrotated = one.buffers(group.origin)
        anew.unrotated_keys.copy_slots(BATCH_SLOT, 0, min(moving, held), unrotated)
        anew.keys.copy_slots(BATCH_SLOT, min(moving, held), held, keys)
        anew.values.copy_slots(BATCH_SLOT, 0, held, values)
        apply(anew, restored)
        assert equal(anew.keys, one.heads.keys, held)
        assert equal(anew.values, values, held)

"""Counts, positions and gather plans of group states, against plain lists of tokens."""

from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.group_state import CompactionTables, GatherPlan, GroupState
from lacache.cache.layer_group import LayerGroup
from lacache.cache.layers import BoundedLayer
from lacache.policies import Ladder
from lacache.policies.schedule import Schedule
from tests.cache.drawn_positions import Positions
from tests.cache.static.policy_strategies import schedules

POSITIONS = ("slots", "counted", "far")
CHUNKS = st.lists(st.tuples(st.integers(1, 20), st.sampled_from(POSITIONS), st.booleans()))


class SlowGroup:
    """A list of `(token, position given)` for each pattern; renumbered keys count as given anew."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.state = schedule.start()
        self.origin = 0
        self.num_compactions = 0
        self.held: dict[int, list[tuple[int, int]]] = {p: [] for p in set(schedule.patterns)}

    def forward(self, num_new: int, first: int, *, renumber: bool) -> None:
        sinks = self.schedule.sinks
        compacts = self.schedule.is_full(self.state)
        if compacts:
            for pattern, held in self.held.items():
                for start, stop in reversed(self.schedule.evicted_slots(self.state, pattern)):
                    del held[start:stop]
            self.state = self.schedule.compact(self.state)
            self.num_compactions += 1
        self.origin = first - self.state.num_cached
        if renumber and compacts and self.schedule.positions == "original":
            for held in self.held.values():
                held[sinks:] = [
                    (token, self.origin + slot) for slot, (token, _) in enumerate(held)
                ][sinks:]
        for held in self.held.values():
            held.extend((self.state.num_seen + n, first + n) for n in range(num_new))
        self.state = self.state.insert(num_new)

    def column(self, index: int) -> Tensor:
        """Tokens (0) or original positions (1) [patterns, N]."""
        held = [[each[index] for each in self.held[p]] for p in sorted(self.held)]
        return torch.tensor(held, dtype=torch.long)

    def positions(self) -> Tensor:
        """Positions of all keys now [patterns, N]."""
        num_keys, sinks = self.state.num_cached, self.schedule.sinks
        if self.schedule.positions == "slots":
            return (self.origin + torch.arange(num_keys)).expand(len(self.held), -1)
        positions = self.column(1)
        for sink in range(sinks if num_keys > sinks else 0):
            positions[:, sink] = positions[:, sinks] - sinks + sink
        return positions


class Slots:
    """What `KVHeads` does, on numbers: [patterns, capacity], -1 where nothing is."""

    def __init__(self, schedule: Schedule, num_patterns: int) -> None:
        shape = (num_patterns, schedule.capacity)
        self.positions, self.unrotated, self.tokens = (torch.full(shape, -1) for _ in range(3))
        moving = schedule.sinks if schedule.positions == "original" else schedule.capacity
        self.unrotated = self.unrotated[:, :moving]

    def apply(self, plan: GatherPlan) -> None:
        moving = self.unrotated.shape[1]
        newer = slice(min(plan.num_saved, moving), min(plan.num_cached, moving))
        self.unrotated[:, newer] = self.positions[:, newer]
        for pattern, (start, stop) in enumerate(plan.to_rotate):
            positions, unrotated = self.positions[pattern], self.unrotated[pattern]
            if plan.sources is not None:
                slots = plan.sources[pattern]
                changed = plan.first_changed[pattern]
                for held, first in (
                    (unrotated, changed),
                    (self.tokens[pattern], changed),
                    (positions, max(changed, stop)),
                ):
                    chosen = slots[: held.shape[0]]
                    held[first : len(chosen)] = held[chosen[first:]]
            if plan.in_place is not None:
                positions[moving : plan.in_place.shape[1]] += plan.in_place[pattern, moving:]
            positions[start:stop] = unrotated[start:stop] + plan.shifts[pattern, start:stop]


@given(schedules(), CHUNKS, st.booleans())
@settings(max_examples=200)
def test_gather_plans_keep_the_right_tokens_at_the_right_positions(
    schedule: Schedule, chunks: list[tuple[int, str, bool]], moves_few: bool
) -> None:
    tables = CompactionTables(schedule)
    moves_few = moves_few and schedule.positions == "original"
    group, slow, where = (
        GroupState(tables, moves_few=moves_few),
        SlowGroup(schedule),
        Positions(schedule),
    )
    slots = Slots(schedule, len(tables.patterns))
    for wanted, positions, drawn in chunks:
        settled = group.settled()
        num_new = min(wanted, group.room())
        first, renumber = where.draw(group.state, positions, drawn)
        plan = group.begin(first, renumber=renumber)
        assert group.begin(first) is None
        assert group.state == settled
        if plan is not None:
            slots.apply(plan)
            check_moves(plan, moves_few=moves_few)
        start, stop = group.state.num_cached, group.state.num_cached + num_new
        slots.positions[:, start:stop] = torch.arange(num_new) + first
        slots.tokens[:, start:stop] = torch.arange(num_new) + group.state.num_seen
        group.commit(num_new)

        slow.forward(num_new, first, renumber=renumber)
        assert group.state == slow.state
        assert group.origin == slow.origin
        assert group.num_compactions == slow.num_compactions
        assert group.num_saved <= group.state.num_cached
        tokens = slots.tokens[:, :stop]
        order = tokens.argsort(dim=1)
        assert moves_few or torch.equal(tokens, tokens.gather(1, order))
        assert torch.equal(group.original_positions().gather(1, order), slow.column(1))
        assert torch.equal(tokens.gather(1, order), slow.column(0))
        assert torch.equal(slots.positions[:, :stop].gather(1, order), slow.positions())


def check_moves(plan: GatherPlan, *, moves_few: bool) -> None:
    """Only tokens of the last slots move, once each, to where the sources say."""
    if not moves_few or plan.sources is None:
        assert plan.moves is None
        return
    assert plan.moves is not None
    num_left = plan.sources.shape[1]
    moved = [tuple(move) for move in plan.moves.T.tolist()]
    sources = [
        (pattern, slot, source)
        for pattern, of_pattern in enumerate(plan.sources.tolist())
        for slot, source in enumerate(of_pattern)
        if slot != source
    ]
    assert moved == sources
    assert all(num_left <= source < plan.num_cached for _, _, source in moved)


class AddingRotation:
    """A rotation of keys that are numbers: moving a key adds the distance."""

    def tables(self, shifts: Tensor) -> tuple[Tensor, Tensor]:
        return shifts[None, :, None], shifts[None, :, None]

    def rotate(self, keys: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        return keys + tables[0]


@given(schedules(), CHUNKS)
@settings(max_examples=100)
def test_layers_of_the_transformers_cache_hold_and_return_the_same(
    schedule: Schedule, chunks: list[tuple[int, str, bool]]
) -> None:
    """Keys are the positions at which they were given, and values are token numbers."""
    rotation: Any = AddingRotation()
    group, slow, where = LayerGroup(schedule), SlowGroup(schedule), Positions(schedule)
    layers = [BoundedLayer(group, p, rotation) for p in range(len(group.patterns))]
    for wanted, positions, drawn in chunks:
        num_new = min(wanted, group.room())
        first, renumber = where.draw(group.state, positions, drawn)
        tokens = (torch.arange(num_new) + group.state.num_seen).view(1, 1, -1, 1)
        keys = (torch.arange(num_new) + first).view(1, 1, -1, 1)
        group.begin(num_new, first, renumber=renumber)
        returned = torch.stack([layer.update(keys, tokens)[0] for layer in layers])
        group.commit()

        slow.forward(num_new, first, renumber=renumber)
        assert group.state == slow.state
        assert group.num_compactions == slow.num_compactions
        assert torch.equal(returned[:, 0, 0, :, 0], slow.positions())
        for stored, column in (("keys", 1), ("values", 0)):
            held = torch.stack([getattr(layer, stored)[0, 0, :, 0] for layer in layers])
            assert torch.equal(held, slow.column(column))
        if positions == "far":  # not after every chunk, as it catches up
            held = torch.tensor([layer.kept_tokens() for layer in layers], dtype=torch.long)
            assert torch.equal(held, slow.column(0))


@given(schedules(), st.sampled_from(POSITIONS), st.integers(0, 60))
@settings(max_examples=50)
def test_only_slots_between_changes_are_rotated(
    schedule: Schedule, positions: str, num_tokens: int
) -> None:
    assume(schedule.positions == "slots")
    tables = CompactionTables(schedule)
    group, where = GroupState(tables), Positions(schedule)
    held: list[list[tuple[int, int]]] = [[] for _ in tables.patterns]
    for token in range(num_tokens):
        first, _ = where.draw(group.state, positions, False)
        plan = group.begin(first)
        if plan is not None:
            assert len(plan.to_rotate) == len(held)
            for pattern, (start, stop) in enumerate(plan.to_rotate):
                before = held[pattern]
                slots = range(len(before)) if plan.sources is None else plan.sources[pattern]
                kept = [before[slot][0] for slot in slots]
                after = [(number, group.origin + slot) for slot, number in enumerate(kept)]
                former = dict(before)
                assert before[:start] == after[:start]
                assert start in (len(after), stop) or before[start] != after[start]
                moved = [slot for slot, (number, at) in enumerate(after) if former[number] != at]
                assert stop == (moved[-1] + 1 if moved else start)
                held[pattern] = after
        for of_one in held:
            of_one.append((token, first))
        group.commit(1)


@given(schedules(), st.integers(1, 40))
@settings(max_examples=100)
def test_tables_of_compactions_are_the_slots_that_are_not_evicted(
    schedule: Schedule, rounds: int
) -> None:
    tables = CompactionTables(schedule)
    state = schedule.start().insert(schedule.room(schedule.start()))
    for _ in range(rounds):
        found = tables.surviving(state)
        for index, pattern in enumerate(sorted(set(schedule.patterns))):
            kept = list(range(state.num_cached))
            for start, stop in schedule.evicted_slots(state, pattern):
                for slot in range(start, stop):
                    kept.remove(slot)
            assert found[index].tolist() == kept
        state = schedule.compact(state)
        assert found.shape[1] == state.num_cached
        state = state.insert(schedule.room(state))


def test_tables_that_repeat_are_computed_once() -> None:
    schedule = Ladder(span=2, sinks=2, evict_batch=3).schedule(5, 24)
    tables = CompactionTables(schedule)
    made: dict[tuple[int, int], Tensor] = {}
    state = schedule.start().insert(schedule.capacity)
    for _ in range(200):
        table = tables.surviving(state)
        assert made.setdefault((state.num_cached, state.cursor), table) is table
        state = schedule.compact(state)
        state = state.insert(schedule.room(state))
    assert len(made) < 20

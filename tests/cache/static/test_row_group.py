"""Counts of a row against those of the transformers cache."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.group import LayerGroup
from lacache.cache.layers import BoundedLayer
from lacache.cache.static.compactions import Compactions
from lacache.cache.static.row_group import Move, RowGroup
from lacache.policies.schedule import Schedule
from tests.cache.static.policy_strategies import schedules


class Adding:
    """A rotation of keys that are numbers: moving one adds to it."""

    def tables(self, shifts: Tensor) -> tuple[Tensor, Tensor]:
        return shifts[None, :, None], shifts[None, :, None]

    def rotate(self, keys: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        return keys + tables[0]


class Twin:
    """`LayerGroup` with one layer for each pattern, whose keys are the positions they came in at
    and whose values are the numbers of the tokens."""

    def __init__(self, schedule: Schedule) -> None:
        self.group = LayerGroup(schedule)
        rotation: Any = Adding()
        self.layers = [
            BoundedLayer(self.group, pattern, rotation)
            for pattern in sorted(set(schedule.patterns))
        ]

    def forward(self, num_new: int, first: int) -> Tensor:
        """Where all keys stand now [patterns, N]."""
        tokens = torch.arange(num_new) + self.group.state.num_seen
        positions = torch.arange(num_new) + first
        self.group.begin(num_new, first)
        stand = [
            layer.update(positions.view(1, 1, -1, 1), tokens.view(1, 1, -1, 1))[0]
            for layer in self.layers
        ]
        self.group.commit()
        return torch.stack(stand)[:, 0, 0, :, 0]

    def held(self, name: str) -> Tensor:
        return torch.stack([getattr(layer, name)[0, 0, :, 0] for layer in self.layers])


class Slots:
    """What `Part.move` does, on numbers: [patterns, capacity], -1 where nothing is."""

    def __init__(self, schedule: Schedule, num_patterns: int) -> None:
        shape = (num_patterns, schedule.capacity)
        self.stand, self.came_in, self.tokens = (torch.full(shape, -1) for _ in range(3))

    def move(self, move: Move) -> None:
        newer = slice(move.unsaved, move.num_cached)
        self.came_in[:, newer] = self.stand[:, newer]
        for pattern, (start, stop) in enumerate(move.turned):
            stand, came_in = self.stand[pattern], self.came_in[pattern]
            if move.surviving is not None:
                slots = move.surviving[pattern]
                for held, first in ((came_in, start), (self.tokens[pattern], start), (stand, stop)):
                    held[first : len(slots)] = held[slots[first:]]
            stand[start:stop] = came_in[start:stop] + move.shifts[pattern, start:stop]


@given(
    schedules(),
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from(["slots", "counted", "far"]))),
)
@settings(max_examples=100)
def test_a_row_group_is_a_layer_group_in_fixed_memory(
    schedule: Schedule, pieces: list[tuple[int, str]]
) -> None:
    compactions = Compactions(schedule)
    mine, twin = RowGroup(compactions), Twin(schedule)
    slots = Slots(schedule, len(compactions.patterns))
    for wanted, positions in pieces:
        assert mine.room() == twin.group.room()
        num_new = min(wanted, mine.room())
        settled = mine.settled()
        assert settled == twin.group.settled()
        first = {
            "slots": settled.num_cached,
            "counted": settled.num_seen,
            "far": settled.num_cached + 7,
        }[positions]
        move = mine.begin(first)
        assert mine.begin(first) is None
        if move is not None:
            slots.move(move)
        start, stop = mine.state.num_cached, mine.state.num_cached + num_new
        slots.stand[:, start:stop] = torch.arange(num_new) + first
        slots.tokens[:, start:stop] = torch.arange(num_new) + mine.state.num_seen
        mine.commit(num_new)

        stand = twin.forward(num_new, first)
        assert mine.state == twin.group.state
        assert mine.num_compactions == twin.group.compactions
        assert mine.num_saved <= mine.state.num_cached
        assert torch.equal(mine.came_in_at(), twin.held("keys"))
        assert torch.equal(slots.stand[:, :stop], stand)
        assert torch.equal(slots.tokens[:, :stop], twin.held("values"))
        assert torch.equal(stand, (mine.origin + torch.arange(stop)).expand_as(stand))


@given(schedules(), st.sampled_from(["slots", "counted", "far"]), st.integers(0, 60))
@settings(max_examples=50)
def test_no_more_is_turned_than_what_lies_between_changes(
    schedule: Schedule, positions: str, num_tokens: int
) -> None:
    compactions = Compactions(schedule)
    group = RowGroup(compactions)
    held: list[list[tuple[int, int]]] = [[] for _ in compactions.patterns]
    for token in range(num_tokens):
        settled = group.settled()
        first = {
            "slots": settled.num_cached,
            "counted": settled.num_seen,
            "far": settled.num_cached + token // 5,
        }[positions]
        move = group.begin(first)
        if move is not None:
            assert len(move.turned) == len(held)
            for pattern, (start, stop) in enumerate(move.turned):
                before = held[pattern]
                slots = range(len(before)) if move.surviving is None else move.surviving[pattern]
                kept = [before[slot][0] for slot in slots]
                after = [(number, group.origin + slot) for slot, number in enumerate(kept)]
                stood = dict(before)
                assert before[:start] == after[:start]
                assert start in (len(after), stop) or before[start] != after[start]
                moved = [slot for slot, (number, at) in enumerate(after) if stood[number] != at]
                assert stop == (moved[-1] + 1 if moved else start)
                held[pattern] = after
        for of_one in held:
            of_one.append((token, first))
        group.commit(1)

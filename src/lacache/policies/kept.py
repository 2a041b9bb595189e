"""Which tokens are kept: per pattern, original token numbers in slot order."""

from collections.abc import Sequence
from functools import cached_property
from typing import final

from lacache.policies.policy import BoundGroup
from lacache.policies.schedule import Schedule, Timetable


@final
class KeptTokens:
    """The tokens that a cache holds, updated as tokens are inserted.

    A mutable record in memory of the order of the capacity; `state` says where it stands.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.state = schedule.start()
        self.by_pattern: dict[int, list[int]] = {p: [] for p in sorted(set(schedule.patterns))}
        self.num_compactions = 0

    def compact(self) -> None:
        """Run the compaction of a full cache."""
        for pattern, tokens in self.by_pattern.items():
            for start, stop in reversed(self.schedule.evicted_slots(self.state, pattern)):
                del tokens[start:stop]
        self.state = self.schedule.compact(self.state)
        self.num_compactions += 1

    def insert(self, num_tokens: int) -> None:
        """Add tokens that fit in without a compaction."""
        first = self.state.num_seen
        for tokens in self.by_pattern.values():
            tokens.extend(range(first, first + num_tokens))
        self.state = self.state.insert(num_tokens)

    def advance(self, num_tokens: int) -> None:
        """Add any number of tokens, with the compactions that fall due before each."""
        end = self.state.num_seen + num_tokens
        while self.state.num_seen < end:
            if self.schedule.is_full(self.state):
                self.compact()
            room = self.schedule.room(self.state)
            self.insert(min(room, end - self.state.num_seen))

    def settle(self) -> None:
        """Run the compaction that is due, if one is: what the next token finds."""
        if self.schedule.is_full(self.state):
            self.compact()


def kept_after(schedule: Schedule, num_seen: int) -> KeptTokens:
    """Return what a cache holds after `num_seen` tokens, in time of the order of one period."""
    return KeptTable(schedule).after(num_seen)


@final
class KeptTable:
    """Computes what a cache holds after any number of tokens, without playing all compactions.

    One period maps slots to slots, and always in the same way; so it is played once, and its map
    is raised to the number of periods. Later calls reuse it.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def after(self, num_seen: int) -> KeptTokens:
        """Return what a cache holds after `num_seen` tokens."""
        kept = KeptTokens(self.schedule)
        if num_seen > max(self.schedule.capacity, self.schedule.steady_from):
            start, end = self._period
            length = end.state.num_seen - start.state.num_seen
            periods = max(0, num_seen - start.state.num_seen) // length
            if periods > 0:
                seen = start.state.num_seen + periods * length
                kept.state = start.state._replace(num_seen=seen)
                kept.num_compactions = start.num_compactions + periods * end.num_compactions
                for pattern in kept.by_pattern:
                    kept.by_pattern[pattern] = self._after_periods(pattern, periods, length)
        kept.advance(num_seen - kept.state.num_seen)
        return kept

    @cached_property
    def _period(self) -> tuple[KeptTokens, KeptTokens]:
        """Return what a cache holds at the start of the first period, and at its end.

        The end counts compactions from the start. Its tokens of before the start are made up, one
        for each slot in order, so they show what moved where.
        """
        timetable = Timetable(self.schedule)
        start, end = KeptTokens(self.schedule), KeptTokens(self.schedule)
        start.advance(timetable.period_start.num_seen)
        end.state = start.state
        for tokens in end.by_pattern.values():
            tokens.extend(range(start.state.num_evicted, start.state.num_seen))
        end.advance(timetable.period_tokens)
        return start, end

    @cached_property
    def _replaced(self) -> dict[int, tuple[int, list[int]]]:
        """Return, by pattern, the periods that replace all tokens that leave, and their map."""
        start, end = self._period
        length = end.state.num_seen - start.state.num_seen
        found = {}
        for pattern in end.by_pattern:
            moves = self._moves(pattern)
            periods = _periods_to_replace(moves)
            found[pattern] = periods, _repeat(moves, length, periods)
        return found

    def _moves(self, pattern: int) -> list[int]:
        start, end = self._period
        return [token - start.state.num_evicted for token in end.by_pattern[pattern]]

    def _after_periods(self, pattern: int, periods: int, length: int) -> list[int]:
        start, _ = self._period
        before, first = start.by_pattern[pattern], start.state.num_evicted
        most, moves = self._replaced[pattern]
        if periods < most:
            moves = _repeat(self._moves(pattern), length, periods)
        else:
            first += (periods - most) * length
        return [before[move] if move < len(before) else move + first for move in moves]


def lists_by_head(
    groups: Sequence[BoundGroup], kept: Sequence[KeptTokens], num_layers: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return what each KV head holds, as distinct lists of tokens and their indices.

    Args:
        groups: of a policy that is bound to a model.
        kept: by group, what it holds.
        num_layers: layers with a growing cache.

    Returns:
        Token numbers in slot order, and by layer and KV head the index of its list among them.
    """
    lists: list[list[int]] = []
    heads: list[dict[int, int]] = [{} for _ in range(num_layers)]
    for group, of_group in zip(groups, kept, strict=True):
        for layer, its_heads in group.heads.items():
            tokens = of_group.by_pattern[group.pattern(layer)]
            # Different patterns hold the same tokens until the first compaction.
            if tokens not in lists:
                lists.append(tokens)
            heads[layer] |= dict.fromkeys(its_heads, lists.index(tokens))
    return lists, [[of_layer[head] for head in sorted(of_layer)] for of_layer in heads]


def _periods_to_replace(moves: list[int]) -> int:
    """Return after how many periods all slots but those that never change hold new tokens."""
    slots = len(moves)
    periods = [1] * slots
    # No token moves up, so the slot that it comes from is done already.
    for slot in reversed(range(slots)):
        if slot < moves[slot] < slots:
            periods[slot] = periods[moves[slot]] + 1
    return max(periods)


def _repeat(moves: list[int], length: int, times: int) -> list[int]:
    """The moves of `times` periods of `length` tokens, by squaring.

    A move below the number of slots names an old slot; from there on, a token by its number since
    the start of the period.
    """
    slots = len(moves)
    result, done = list(range(slots)), 0
    while times:
        if times % 2:
            result = [result[m] if m < slots else m + done for m in moves]
            done += length
        moves = [moves[m] if m < slots else m + length for m in moves]
        length *= 2
        times //= 2
    return result


def coverage(by_pattern: dict[int, list[int]]) -> int:
    """Distinct tokens that at least one layer still holds."""
    return len(set().union(*by_pattern.values()))

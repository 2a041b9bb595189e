"""Which tokens are kept: per pattern, original token numbers in slot order."""

from collections.abc import Sequence
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
    """Return what a cache holds after `num_seen` tokens, in time of the order of one period.

    One period maps slots to slots, and always in the same way; so it is played once, and its map
    is raised to the number of periods.
    """
    kept = KeptTokens(schedule)
    if num_seen <= max(schedule.capacity, schedule.steady_from):
        kept.advance(num_seen)
        return kept
    timetable = Timetable(schedule)
    start, length = timetable.period_start, timetable.period_tokens
    periods = max(0, num_seen - start.num_seen) // length
    if periods < 2:
        kept.advance(num_seen)
        return kept
    kept.advance(start.num_seen)
    slots = start.num_cached
    arrived = start.num_seen - slots
    one = KeptTokens(schedule)
    one.state = start
    for tokens in one.by_pattern.values():
        tokens.extend(range(arrived, start.num_seen))
    one.advance(length)
    for pattern, after in one.by_pattern.items():
        before = kept.by_pattern[pattern]
        kept.by_pattern[pattern] = [
            before[m] if m < slots else m + arrived
            for m in _repeat([token - arrived for token in after], length, periods)
        ]
    kept.state = start._replace(num_seen=start.num_seen + periods * length)
    kept.num_compactions += periods * one.num_compactions
    kept.advance(num_seen - kept.state.num_seen)
    return kept


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

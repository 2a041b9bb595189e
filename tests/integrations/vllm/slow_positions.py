"""Original positions of a sequence that takes one token at a time: the slow twin of the arrays."""

from collections.abc import Sequence

from lacache.policies import KeptTokens, Schedule
from lacache.policies.query_positions import QueryPositions


class SlowPositions:
    """What head groups keep, and where their keys stand, token by token."""

    def __init__(self, schedules: Sequence[Schedule], trained_length: int) -> None:
        self.schedules = tuple(schedules)
        self.kept = [KeptTokens(schedule) for schedule in schedules]
        self.base = 0
        self._rule = QueryPositions(self.schedules, trained_length, count_on=False)
        # Of each group and pattern, where tokens stand; the sinks' are computed.
        self._places: list[dict[int, dict[int, int]]] = [
            {pattern: {} for pattern in kept.by_pattern} for kept in self.kept
        ]

    def insert(self) -> int:
        """Insert the next token; return its position."""
        _, base = self._rule.find(self.base, [kept.state for kept in self.kept])
        for kept in self.kept:
            kept.settle()
        token = self.kept[0].state.num_seen
        for kept, places in zip(self.kept, self._places, strict=True):
            for pattern, tokens in kept.by_pattern.items():
                if base != self.base:
                    first = token - base - len(tokens)
                    places[pattern] = {t: first + slot for slot, t in enumerate(tokens)}
                places[pattern][token] = token - base
        self.base = base
        for kept in self.kept:
            kept.insert(1)
        return token - base

    def standing(self, group: int, pattern: int) -> list[int]:
        """Return the position of the key in each slot."""
        sinks, tokens = self.schedules[group].sinks, self.kept[group].by_pattern[pattern]
        found = [self._places[group][pattern][token] for token in tokens]
        if len(found) > sinks:
            found[:sinks] = range(found[sinks] - sinks, found[sinks])
        return found

"""Original positions of a sequence that takes one token at a time: the slow twin of the arrays."""

from lacache.policies import KeptTokens, Schedule
from lacache.policies.query_positions import QueryPositions


class SlowPositions:
    """Where the keys of a sequence stand, token by token."""

    def __init__(self, schedule: Schedule, trained_length: int) -> None:
        self.schedule = schedule
        self.kept = KeptTokens(schedule)
        self.base = 0
        self._rule = QueryPositions((schedule,), trained_length, count_on=False)
        # Of each pattern, where tokens stand; the sinks' are computed.
        self._places: dict[int, dict[int, int]] = {pattern: {} for pattern in self.kept.by_pattern}

    def insert(self) -> int:
        """Insert the next token; return its position."""
        _, base = self._rule.find(self.base, [self.kept.state])
        self.kept.settle()
        for pattern, tokens in self.kept.by_pattern.items():
            if base != self.base:
                self._places[pattern] = {token: slot for slot, token in enumerate(tokens)}
        self.base = base
        token = self.kept.state.num_seen
        for places in self._places.values():
            places[token] = token - base
        self.kept.insert(1)
        return token - base

    def standing(self, pattern: int) -> list[int]:
        """Return the position of the key in each slot."""
        sinks, tokens = self.schedule.sinks, self.kept.by_pattern[pattern]
        found = [self._places[pattern][token] for token in tokens]
        if len(found) > sinks:
            found[:sinks] = range(found[sinks] - sinks, found[sinks])
        return found

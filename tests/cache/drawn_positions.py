"""Positions of chunks of tokens, as a model or its user might choose them."""

from lacache.policies.schedule import Schedule, State


class Positions:
    """Where chunks of tokens come in, and whether the keys before are renumbered.

    Where keys stand at original positions, tokens count on, from a base where compactions that
    renumber move it. Else they come in anywhere.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.base = 0

    def draw(self, state: State, kind: str, renumber: bool, far: int = 7) -> tuple[int, bool]:
        """Return the position of the next token, and whether keys are renumbered before it.

        Args:
            state: before the token, and before a compaction that is due.
            kind: "slots", "counted" (never back to a lower position) or "far".
            renumber: whether a compaction that is due may renumber.
            far: distance from the slots of what is "far".
        """
        settled = self.schedule.settle(state)
        if self.schedule.positions == "slots":
            first = {
                "slots": settled.num_cached,
                "counted": settled.num_seen,
                "far": settled.num_cached + far,
            }[kind]
            return first, renumber
        renumber = renumber and self.schedule.is_full(state)
        if renumber and kind != "counted":
            self.base = settled.num_seen - settled.num_cached
        return settled.num_seen - self.base, renumber

"""Original positions as arrays: where the keys of any sequence stand, by token counts alone."""

from typing import final

import numpy as np

from lacache.integrations.vllm.schedule_arrays import Integers, ScheduleArrays


@final
class OriginalPositions:
    """Positions of keys that keep their places in the text (docs/adr/0022).

    A token is inserted at `num_seen - base`. A compaction renumbers all keys, to their slots, if
    the next one would come after the trained length (`lacache.policies.query_positions`). Nothing
    from before a renumbering matters after it, so renumberings soon recur, and what lies between
    two of them is computed once for all sequences.

    Args:
        schedule: of every sequence.
        trained_length: positions that the model was trained on.
    """

    def __init__(self, schedule: ScheduleArrays, trained_length: int) -> None:
        self._schedule = schedule
        self._sinks = schedule.schedule.sinks
        # The start of a sequence counts as a renumbering.
        renumberings, bases = [0], [0]
        found: dict[int, int] = {}
        while True:
            # The last compaction that finds at most so many tokens; the next finds more.
            last = schedule.locate(np.array([bases[-1] + trained_length]))[1]
            compaction = max(renumberings[-1] + 1, int(last[0]))
            base = schedule.state_before(compaction).num_seen - schedule.num_left(compaction)
            again = found.setdefault(schedule.recurring(compaction), len(renumberings))
            if again < len(renumberings):
                break
            renumberings.append(compaction)
            bases.append(base)
        self._renumberings = np.array(renumberings, dtype=np.int64)
        self._bases = np.array(bases, dtype=np.int64)
        self._lengths = np.diff(self._renumberings, append=compaction)
        self._start = renumberings[again]
        self._period = compaction - renumberings[again]
        self._period_tokens = base - bases[again]
        self._renumbered: dict[int, _Renumbered] = {}

    def bases(self, done: Integers) -> Integers:
        """Return the base of tokens [N], given the number of compactions before each."""
        last, cycles = self._last_renumbering(done)
        return self._bases[last] + cycles * self._period_tokens

    def after(self, compaction: int) -> tuple[Integers, Integers | None]:
        """Return how keys stand after a compaction, per pattern.

        Returns:
            The positions of the sinks [patterns, sinks]; and, where the compaction renumbers, by
            how much lower each surviving key stands than before [patterns, N], else None.
        """
        last, cycles = self._last_renumbering(np.array([compaction - 1]))
        number = int(last[0])
        first = int(self._renumberings[number])
        index = compaction - 1 - int(cycles[0]) * self._period - first
        if number not in self._renumbered:
            self._renumbered[number] = _Renumbered(self._schedule, first)
        renumbered = self._renumbered[number]
        renumbered.advance(index + 1)
        steps = np.arange(-self._sinks, 0)
        if index + 1 < self._lengths[number]:
            return renumbered.oldest[index][:, None] + steps, None
        lower = renumbered.standing - np.arange(renumbered.standing.shape[1])
        return np.zeros_like(lower[:, :1]) + steps + self._sinks, lower

    def _last_renumbering(self, done: Integers) -> tuple[Integers, Integers]:
        """Return the last renumbering among the first `done` compactions [N], and its cycle."""
        cycles = np.maximum(done - self._start, 0) // self._period
        last = np.searchsorted(self._renumberings, done - cycles * self._period, side="right") - 1
        return last, cycles


@final
class _Renumbered:
    """The keys from one renumbering to the next, up to the last compaction that was asked for.

    Args:
        schedule: of every sequence.
        first: the compaction that renumbers; 0 is the start of the sequence.
    """

    def __init__(self, schedule: ScheduleArrays, first: int) -> None:
        self._schedule = schedule
        self._compaction = first
        self._next = schedule.num_left(first) if first else 0
        self.standing = np.tile(np.arange(self._next), (len(schedule.patterns), 1))
        """Positions of the keys in the slots [patterns, N]; the sinks' are not kept up to date."""
        self.oldest: list[Integers] = []
        """After each compaction, the position of the oldest key after the sinks [patterns]."""

    def advance(self, num_compactions: int) -> None:
        """Run compactions, up to `num_compactions` after the first."""
        sinks = self._schedule.schedule.sinks
        while len(self.oldest) < num_compactions:
            self._compaction += 1
            full = self._schedule.state_before(self._compaction).num_cached
            self._insert(full - self.standing.shape[1])
            _, sources = self._schedule.moves(self._compaction)
            self.standing = np.take_along_axis(self.standing, sources, axis=1)
            num_left = self.standing.shape[1]
            # Where only the sinks are left, the next token is the oldest other one.
            self.oldest.append(
                self.standing[:, sinks]
                if num_left > sinks
                else np.full(len(self.standing), self._next)
            )

    def _insert(self, num_new: int) -> None:
        new = np.tile(np.arange(self._next, self._next + num_new), (len(self.standing), 1))
        self.standing = np.concatenate([self.standing, new], axis=1)
        self._next += num_new

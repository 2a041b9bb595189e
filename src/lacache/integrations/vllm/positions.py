"""Original positions as arrays: where the keys of any sequence stand, by token counts alone."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import final

import numpy as np

from lacache.integrations.vllm.schedule_arrays import Integers, ScheduleArrays

_MOST_HISTORIES = 512
"""Of which the positions are remembered."""


@final
class OriginalPositions:
    """Positions of keys that keep their places in the text (docs/adr/0022).

    A token is inserted at `num_seen - base`. A compaction of any head group renumbers the keys of
    all, so that the newest stand right before the next token, if the next compaction would come
    after the trained length (`lacache.policies.query_positions`). Nothing from before a renumbering
    matters after it.

    Args:
        groups: the schedules of the head groups.
        trained_length: positions that the model was trained on.
    """

    def __init__(self, groups: Sequence[ScheduleArrays], trained_length: int) -> None:
        self._groups = groups
        self._trained_length = trained_length
        # Tokens seen at each renumbering, and the base from then on.
        self._renumberings = [0]
        self._bases = [0]
        self._checked = 0
        self._history = lru_cache(maxsize=_MOST_HISTORIES)(self._new_history)

    def bases(self, seen: Integers) -> Integers:
        """Return the base of tokens [N], given the number of tokens before each."""
        self._extend(int(seen.max(initial=0)))
        last = np.searchsorted(self._renumberings, seen, side="right") - 1
        bases: Integers = np.array(self._bases)[last]
        return bases

    def after(
        self, group: int, seen: int, done: int, num_cached: int
    ) -> tuple[Integers, Integers | None]:
        """Return how keys of a head group stand after a compaction or renumbering, per pattern.

        Args:
            group: its number.
            seen: tokens before it.
            done: compactions of the group so far, with this one.
            num_cached: slots in use after it, N.

        Returns:
            The positions of the sinks [patterns, sinks]; and, where keys are renumbered, by how
            much lower each stands than before [patterns, N], else None.
        """
        arrays, sinks = self._groups[group], self._groups[group].schedule.sinks
        self._extend(seen)
        last = bisect_right(self._renumberings, seen) - 1
        renumbers = seen > 0 and self._renumberings[last] == seen
        number = last - renumbers
        start, base = self._renumberings[number], self._bases[number]
        first, cached = arrays.count(start)
        history = self._history(group, arrays.recurring(first), cached)
        origin = start - base - cached
        if not renumbers:
            oldest = history.oldest(done - first) + origin
            return oldest[:, None] + np.arange(-sinks, 0), None
        before = history.end(done - first, num_cached) + origin
        now = seen - self._bases[number + 1] - num_cached + np.arange(num_cached)
        return np.tile(now[:sinks], (len(before), 1)), before - now

    def _extend(self, seen: int) -> None:
        """Find the renumberings up to token number `seen`."""
        while self._checked <= seen:
            # The last compaction of any group that finds at most so many tokens, or else the next.
            most = self._bases[-1] + self._trained_length
            found = max(arrays.seen_at(arrays.count(most)[0]) for arrays in self._groups)
            if found <= self._checked:
                now = self._checked
                found = min(arrays.seen_at(arrays.count(now)[0] + 1) for arrays in self._groups)
            self._checked = found
            base = found - max(arrays.count(found)[1] for arrays in self._groups)
            # The group with most tokens may have evicted none.
            if base != self._bases[-1]:
                self._renumberings.append(found)
                self._bases.append(base)

    def _new_history(self, group: int, first: int, num_cached: int) -> "_GroupHistory":
        return _GroupHistory(self._groups[group], first, num_cached)


@final
class _GroupHistory:
    """The keys of a head group from one renumbering on, up to what was asked for.

    Positions are counted from slot 0 at the renumbering.

    Args:
        arrays: the schedule.
        first: compactions of the group before the renumbering, or as many in a sequence that
            differs in its token numbers only.
        num_cached: slots in use at the renumbering.
    """

    def __init__(self, arrays: ScheduleArrays, first: int, num_cached: int) -> None:
        self._arrays = arrays
        self._start = first, num_cached
        self._standing = np.tile(np.arange(num_cached), (len(arrays.patterns), 1))
        self._next = num_cached
        self._oldest: list[Integers] = []
        self._ends: dict[tuple[int, int], Integers] = {}

    def oldest(self, num_compactions: int) -> Integers:
        """Return where the oldest keys after the sinks stand after a compaction [patterns]."""
        self._advance(num_compactions)
        return self._oldest[num_compactions - 1]

    def end(self, num_compactions: int, num_cached: int) -> Integers:
        """Return the positions of all keys [patterns, N] but the sinks', at the next renumbering.

        Args:
            num_compactions: of the group from renumbering to renumbering.
            num_cached: slots in use, N; tokens after the last compaction are included.
        """
        if (num_compactions, num_cached) not in self._ends:
            # Other sequences may have come further.
            anew = _GroupHistory(self._arrays, *self._start)
            anew._advance(num_compactions)
            anew._insert(num_cached)
            self._ends[num_compactions, num_cached] = anew._standing
        return self._ends[num_compactions, num_cached]

    def _advance(self, num_compactions: int) -> None:
        sinks = self._arrays.schedule.sinks
        while len(self._oldest) < num_compactions:
            compaction = self._start[0] + len(self._oldest) + 1
            self._insert(self._arrays.state_before(compaction).num_cached)
            _, sources = self._arrays.moves(compaction)
            self._standing = np.take_along_axis(self._standing, sources, axis=1)
            # Where only the sinks are left, the next token is the oldest other one.
            self._oldest.append(
                self._standing[:, sinks]
                if self._standing.shape[1] > sinks
                else np.full(len(self._standing), self._next)
            )

    def _insert(self, num_cached: int) -> None:
        new = self._next + np.arange(num_cached - self._standing.shape[1])
        later = np.broadcast_to(new, (len(self._standing), len(new)))
        self._standing = np.concatenate([self._standing, later], axis=1)
        self._next += len(new)

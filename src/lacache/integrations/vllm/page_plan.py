"""Which pages of a sequence hold the slots of each KV head, by token counts alone.

All layers of a worker share one pool of pages, and a page holds slots of a single KV head. A head
needs its page number i from its token number i * page size on, and a window that shrinks gives up
its last pages one after the other. So every page of a head is needed in one stretch of the text,
which is known ahead, and a page of the pool can serve several heads in turn. None moves, and a
sequence claims at its start what it will ever need.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lacache.errors import ConfigError
from lacache.integrations.vllm.schedule_arrays import Integers
from lacache.policies import BoundPolicy, Schedule, Timetable, mean_capacity

Stretch = tuple[int, int | None]
"""Tokens between which a page is needed; the second is None where that has no end."""


@final
@dataclass(frozen=True)
class PlannedHead:
    """A KV head of a worker: its layer, and the schedule of its group."""

    layer: int
    schedule: Schedule


@final
@dataclass(frozen=True)
class PagePlan:
    """Pages of a sequence, numbered from 0.

    Args:
        tables: by head, its pages in order of its slots.
        num_pages: of all heads.
    """

    tables: tuple[Integers, ...]
    num_pages: int


def plan_pages(heads: Sequence[PlannedHead], page_size: int, most_tokens: int) -> PagePlan:
    """Divide the pages of a sequence among the heads of a worker.

    A step of vLLM runs layer by layer, each with all tokens of the step. So a page that a head
    gives up can serve a later layer, or the same, at once, and an earlier layer only in a later
    step.

    Args:
        heads: in order of their layers.
        page_size: slots in a page.
        most_tokens: of a sequence in one step.
    """
    needed: list[tuple[int, int, int, Stretch]] = []
    stretches: dict[Schedule, list[Stretch]] = {}
    for number, head in enumerate(heads):
        if head.schedule not in stretches:
            stretches[head.schedule] = page_stretches(head.schedule, page_size)
        needed += (
            (stretch[0], head.layer, number, stretch) for stretch in stretches[head.schedule]
        )
    pages = _PageHandover(most_tokens)
    tables: list[list[int]] = [[] for _ in heads]
    for first, layer, number, (_, end) in sorted(needed, key=lambda each: each[:3]):
        tables[number].append(pages.take(first, layer, end))
    return PagePlan(tuple(np.array(table, dtype=np.int64) for table in tables), pages.count)


def find_page_size(bound: BoundPolicy, *, least: int) -> int:
    """Return how many slots a page holds: few beside what a KV head keeps.

    Args:
        bound: what every sequence keeps.
        least: that the kernel takes.
    """
    slots = int(mean_capacity(bound.groups)) // 32
    return max(least, min(128, 1 << max(0, slots.bit_length() - 1)))


def page_stretches(schedule: Schedule, page_size: int) -> list[Stretch]:
    """Return when each page of a head is needed, in order of its slots.

    Raises:
        ConfigError: a page is needed again after it was given up, as in no policy of ours.
    """
    start = schedule.start()
    num_pages = -(-schedule.room(start) // page_size)
    ends: list[int | None] = [None] * num_pages
    left = num_pages
    for full in Timetable(schedule).compactions:
        after = schedule.compact(full)
        needed = -(-(after.num_cached + schedule.room(after)) // page_size)
        if needed > left:
            raise ConfigError(
                f"{type(schedule).__name__} needs {needed} pages after {full.num_seen} tokens, and "
                f"only {left} before, which pages of vLLM do not take; use lacache.Engine"
            )
        ends[needed:left] = [full.num_seen] * (left - needed)
        left = needed
    return [(page * page_size, end) for page, end in enumerate(ends)]


@final
class _PageHandover:
    """Pages that serve one head after the other.

    Args:
        most_tokens: of a sequence in one step.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self.count = 0
        # Pages by the layer that last had them: until which token, and the page.
        self._free: dict[int, list[tuple[int, int]]] = {}

    def take(self, first: int, layer: int, end: int | None) -> int:
        """Return a page that a layer has from token `first` until token `end`."""
        page = self._unused(first, layer)
        if end is not None:
            heapq.heappush(self._free.setdefault(layer, []), (end, page))
        return page

    def _unused(self, first: int, layer: int) -> int:
        for former in sorted(self._free, reverse=True):
            waits = self._most_tokens if former > layer else 0
            pages = self._free[former]
            if pages and pages[0][0] + waits <= first:
                return heapq.heappop(pages)[1]
        self.count += 1
        return self.count - 1

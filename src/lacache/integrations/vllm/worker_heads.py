"""The KV heads of a worker: what each keeps, and where in the pages of a sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lacache.integrations.vllm.page_plan import PagePlan, PlannedHead, plan_pages
from lacache.integrations.vllm.positions import OriginalPositions
from lacache.integrations.vllm.schedule_arrays import Integers, ScheduleArrays
from lacache.policies import BoundGroup

Shard = Mapping[int, Sequence[int]]
"""Layers of a worker, and which KV heads of each it has; both in increasing order."""


@final
@dataclass(frozen=True)
class HeadGroup:
    """The KV heads of a worker that share a schedule.

    Args:
        arrays: the schedule.
        heads: their numbers [M], increasing.
        patterns: indices of their patterns in `arrays.patterns` [M].
        table: pages of a sequence that hold their slots, in order of the slots [M, pages].
        by_layer: index of each of their layers in the worker, and which of them it has.
    """

    arrays: ScheduleArrays
    heads: Integers
    patterns: Integers
    table: Integers
    by_layer: tuple[tuple[int, slice], ...]


@final
class WorkerHeads:
    """The KV heads of a worker, numbered by layer and head.

    Args:
        groups: of a policy that is bound to the model.
        shard: what the worker has.
        page_size: slots in a page. A page has room for twice as many copies of unrotated keys.
        most_tokens: of a sequence in one step.
        trained_length: positions that the model was trained on.
    """

    def __init__(
        self,
        groups: Sequence[BoundGroup],
        shard: Shard,
        page_size: int,
        most_tokens: int,
        trained_length: int,
    ) -> None:
        self.page_size = page_size
        pairs = [(layer, head) for layer, heads in shard.items() for head in heads]
        self.num_heads = len(pairs)
        """KV heads of all layers."""
        ends = np.cumsum([0, *(len(heads) for heads in shard.values())]).tolist()
        self.layers = {layer: slice(*ends[i : i + 2]) for i, layer in enumerate(shard)}
        """Numbers of the heads of each layer."""
        planned = [
            PlannedHead(layer, group.schedule)
            for layer, head in pairs
            for group in groups
            if head in group.heads.get(layer, ())
        ]
        plan = plan_pages(planned, page_size, most_tokens)
        self.tables = plan.tables
        """By head, the pages of a sequence that hold its slots, in their order."""
        # What happens to a sequence depends on the heads of other workers too.
        self.groups = tuple(_find_group(group, pairs, list(shard), plan) for group in groups)
        schedules = [group.schedule for group in groups]
        is_original = schedules[0].positions == "original"
        self.most_sinks = max(schedule.sinks for schedule in schedules)
        """Sinks of a head."""
        copies = [self.most_sinks if is_original else head.schedule.capacity for head in planned]
        ends = np.cumsum([0, *copies], dtype=np.int64)
        self.first_copies = ends[:-1]
        """Number of each head's first copy; copies are counted over all heads."""
        self.first_copy_page = plan.num_pages
        self.num_pages = plan.num_pages + -(-int(ends[-1]) // (2 * page_size))
        """Pages of a sequence."""
        self.original = (
            OriginalPositions([group.arrays for group in self.groups], trained_length)
            if is_original
            else None
        )
        """Where keys stand; None where they stand at their slots."""


def _find_group(
    group: BoundGroup, pairs: Sequence[tuple[int, int]], layers: Sequence[int], plan: PagePlan
) -> HeadGroup:
    arrays = ScheduleArrays(group.schedule)
    heads = [n for n, (layer, head) in enumerate(pairs) if head in group.heads.get(layer, ())]
    indices = {pattern: index for index, pattern in enumerate(arrays.patterns)}
    own = [pairs[number][0] for number in heads]
    by_layer = []
    for layer in dict.fromkeys(own):
        start = own.index(layer)
        by_layer.append((layers.index(layer), slice(start, start + own.count(layer))))
    return HeadGroup(
        arrays,
        np.array(heads, dtype=np.int64),
        np.array([indices[group.pattern(layer)] for layer in own], dtype=np.int64),
        np.array([plan.tables[number] for number in heads], dtype=np.int64),
        tuple(by_layer),
    )

"""A long history for the KV heads that need one, a short window for the others, at equal bytes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.geometry import default_span_overlap
from lacache.policies.groups import Group, Groups, Member, pairs_of
from lacache.policies.ladder import Ladder
from lacache.policies.schedule import BoundGroup, Plan, Policy
from lacache.policies.shrinking_window import ShrinkingWindow
from lacache.policies.streaming import Streaming


def split_by_need(
    order: Sequence[Member], share: float, most: float
) -> tuple[tuple[Member, ...], ...]:
    """A history and its tiers, from members in order of need.

    Args:
        order: layers or pairs, the neediest first.
        share: of them in the history; one at least.
        most: share in the history and all tiers together, but one member. Each tier adds a quarter
            of what stands before it.
    """
    end = max(1, round(share * len(order)))
    parts = [tuple(order[:end])]
    last = min(round(most * len(order)), len(order) - 1)
    while end < last:
        start, end = end, min(last, end + max(1, end // 4))
        parts.append(tuple(order[start:end]))
    return tuple(parts)


@final
@dataclass(frozen=True, kw_only=True)
class RetrievalHeads(Plan):
    """Few KV heads find what is far back; they get what the others, with a window, leave.

    The history never ends, as it is a ladder over its own layers: once its capacity is reached,
    its older part is thinned again and again.

    Args:
        capacity: tokens per KV head on average: the cache has the bytes of one with that
            capacity in every layer.
        history: layers, or pairs (layer, KV head), that keep a history.
        window: capacity of all others in the end, as a share of `capacity`. Until the history has
            grown so long, they hold what it leaves: the bytes are in use at all times, up to one
            evict_batch.
        tiers: more layers or pairs, in order of their need. Each tier holds everything until the
            history and the tiers before it need its bytes, so the last ones give way first; those
            in no tier before all of them.
        sinks: first tokens, never evicted.
        evict_batch: tokens that come in from one compaction to the next; a full history frees as
            many, or a little more, at moments of its own.
        span: of the history's ladder, in layers of the history; by default half of them.
        overlap: likewise; without span and overlap, four fifths of the span.
        recent: newest tokens of the history that no compaction touches; by default half.
        geometry: "interleaved" or "consecutive".
        unit: neighbouring tokens that are kept or dropped together.

    Raises:
        ConfigError: a value out of range, or groups that cannot work in that model.
    """

    capacity: int
    history: tuple[Member, ...]
    window: float = 0.5
    tiers: tuple[tuple[Member, ...], ...] = ()
    sinks: int = 4
    evict_batch: int = 1
    span: int | None = None
    overlap: int | None = None
    recent: int | None = None
    geometry: str = "interleaved"
    unit: int = 1

    def __post_init__(self) -> None:
        validate_int("capacity", self.capacity, 1)
        validate_int("sinks", self.sinks, 0)
        validate_int("evict_batch", self.evict_batch, 1)
        if not isinstance(self.window, int | float) or not 0.0 < self.window < 1.0:
            raise ConfigError(
                f"window={self.window!r} as a share must be in (0, 1); try window=0.5"
            )
        smallest = self.sinks + self.evict_batch
        if self.window_capacity < smallest:
            raise ConfigError(
                f"window={self.window} of capacity={self.capacity} is {self.window_capacity} "
                f"tokens, and at least {smallest} = sinks {self.sinks} + evict_batch "
                f"{self.evict_batch} are needed; try capacity={math.ceil(smallest / self.window)}"
            )
        window = Streaming(self.window_capacity, self.sinks, self.evict_batch)
        object.__setattr__(self, "history", Group(window, self.history).members)
        if isinstance(self.tiers, str) or not isinstance(self.tiers, Iterable):
            raise ConfigError(
                f"tiers={self.tiers!r} must be a sequence of tiers; try tiers=((1, (2, 0)), (3,))"
            )
        tiers = tuple(Group(window, members).members for members in self.tiers)
        object.__setattr__(self, "tiers", tiers)

    @property
    def window_capacity(self) -> int:
        """Capacity of the KV heads without a history, in the end."""
        return max(1, int(self.capacity * self.window))

    def history_capacity(self, num_heads: Sequence[int]) -> int:
        """Capacity of the KV heads with a history: what the others leave in the end."""
        return self._capacity(len(pairs_of(self.history, num_heads)), sum(num_heads))

    def bind_groups(self, num_heads: Sequence[int]) -> tuple[BoundGroup, ...]:
        """The history first, then the tiers, then all others."""
        tiers = [pairs_of(members, num_heads) for members in (self.history, *self.tiers)]
        named = {pair for tier in tiers for pair in tier}
        others = [
            (layer, head)
            for layer, heads in enumerate(num_heads)
            for head in range(heads)
            if (layer, head) not in named
        ]
        if not others:
            what = "history and tiers hold" if self.tiers else "history holds"
            raise ConfigError(
                f"{what} every KV head, so nothing is left for windows; use one ladder for all "
                "layers (preset balanced without a profile, or a Ladder)"
            )
        groups = [Group(self._thinned(num_heads), tuple(tiers[0]))]
        neediest = len(tiers[0])
        for tier in (*tiers[1:], others):
            window = self._shrinking(neediest, len(tier), sum(num_heads))
            groups.append(Group(window, tuple(tier)))
            neediest += len(tier)
        return Groups(tuple(groups)).bind_groups(num_heads)

    def _capacity(self, num_neediest: int, heads: int) -> int:
        """Tokens that so many KV heads can hold while all others have their window.

        Less a few, so that the tiers compact at the same tokens and the history is full at one of
        them, which makes for longer segments.
        """
        window = self.window_capacity
        capacity = window + (self.capacity - window) * heads // num_neediest
        return capacity - (capacity - self.capacity) % self.evict_batch

    def _shrinking(self, before: int, tier: int, heads: int) -> ShrinkingWindow:
        """The window of a tier with so many KV heads, after so many with more need."""
        return ShrinkingWindow(
            capacity=self._capacity(before + tier, heads),
            least=self.window_capacity,
            history_heads=before,
            window_heads=tier,
            sinks=self.sinks,
            evict_batch=self.evict_batch,
        )

    def _thinned(self, num_heads: Sequence[int]) -> Policy:
        capacity = self.history_capacity(num_heads)
        num_layers = len({layer for layer, _ in pairs_of(self.history, num_heads)})
        if num_layers == 1:
            # One layer alone has no ladder to stand on.
            return Streaming(capacity, self.sinks, self.evict_batch)
        span, overlap = default_span_overlap(num_layers) if self.span is None else (self.span, 0)
        if self.overlap is not None:
            overlap = self.overlap
        return Ladder(
            capacity=capacity,
            span=span,
            overlap=overlap,
            sinks=self.sinks,
            recent=self.recent,
            evict_batch=self.evict_batch,
            geometry=self.geometry,
            unit=self.unit,
        )

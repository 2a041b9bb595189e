"""A long history for the retrieval heads, a short window for the streaming heads, at equal bytes.

Few KV heads copy from far back ("retrieval heads", arXiv 2404.15574); all others do as well with a
window. Which they are comes from the model's head profile or from the user, before the first
token, so what is kept still depends on counts alone. docs/adr/0026-split.md has the measurements
behind the numbers here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from lacache.common.validation import validate_number
from lacache.errors import ConfigError
from lacache.policies.groups import Group, Groups
from lacache.policies.head_profile import layers_by_depth
from lacache.policies.ladder import Ladder
from lacache.policies.members import (
    Member,
    format_members,
    pairs_of,
    parse_members,
    text_form,
    validate_members,
)
from lacache.policies.policy import (
    DEFAULT_POSITIONS,
    EVICT_BATCH,
    SINKS,
    BoundGroup,
    LayerPolicy,
    ModelShape,
    Policy,
    in_slots,
)
from lacache.policies.schedule import UNBOUNDED, Schedule
from lacache.policies.shrinking_window import ShrinkingWindow
from lacache.policies.streaming import Streaming

Tiers = tuple[tuple[Member, ...], ...]


def _parse_tiers(text: str) -> Tiers:
    return tuple(map(parse_members, text.split("/")))


def _format_tiers(tiers: Tiers) -> str:
    return "/".join(map(format_members, tiers))


_TIERS_FORM = text_form(_parse_tiers, _format_tiers, "8.0+17/12.1")

_LOSS_LEFT = 0.5
"""Share of what windows in all heads cost that the heads of the history may leave."""
_MOST = 0.6
_SHARE_BY_DEPTH = 0.1


@final
@dataclass(frozen=True, kw_only=True)
class RetrievalHeads(Policy):
    """Retrieval heads get a history in the bytes that streaming heads, with a window, leave.

    The history never ends, as it is a ladder over its own layers: once its capacity is reached,
    its older part is compacted again and again.

    At every length, as many heads hold everything as the bytes allow, the most important first.
    Less important heads lose theirs earlier, in tiers.

    Args:
        window: capacity of the streaming heads in the end, as a share of the whole. The wider, the
            better prose; the narrower, the more heads hold everything. With a profile it is
            never less than the profile's sinks and window, or half of the whole if that is less.
            Until the history has grown so long, streaming heads hold what it leaves.
        share: of the KV heads, how many keep a history in the end. None is as many as the
            model's head profile asks for: the fewest that leave half of what windows in all
            heads cost.
        most: share of the KV heads in the history and all tiers together; None is three fifths.
            Each tier adds a quarter of what stands before it.
        heads: layers, or pairs (layer, KV head), in place of a profile: the history first, then
            the tiers.
        without_profile: what a model without a profile gets: "ladder", one ladder over all
            layers, or "depth", a history for the layers that are likely by their depth.
        sinks: first tokens, never evicted.
        evict_batch: slots that each compaction frees in every KV head, or a share of the capacity;
            rounded up to what the ladder of the retrieval heads can free.
        span: of the history's ladder; see Ladder, as for all below.
        overlap: of the history's ladder.
        recent: newest tokens of the history that no compaction touches.
        geometry: "interleaved" or "consecutive".
        unit: neighbouring tokens that are kept or evicted together.
        positions: "original" or "slots"; see `lacache.policies.schedule.POSITIONS`.

    Raises:
        ConfigError: a value out of range; from `bind` for groups that cannot work in that model.
    """

    window: float = 0.7
    share: float | None = None
    most: float | None = None
    heads: Tiers = field(default=(), metadata=_TIERS_FORM)
    without_profile: str = "ladder"
    sinks: int = SINKS
    evict_batch: float = EVICT_BATCH
    span: int | None = None
    overlap: int | None = None
    recent: float | None = None
    geometry: str = "interleaved"
    unit: int = 1
    positions: str = DEFAULT_POSITIONS

    names: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "balanced": {},
        "recall": {"window": 0.35, "without_profile": "depth"},
        "retrieval": {},
    }

    def __post_init__(self) -> None:
        if isinstance(self.heads, str) or not isinstance(self.heads, Iterable):
            raise ConfigError(
                f"heads={self.heads!r} must be a sequence of tiers; try heads=((1, (2, 0)), (3,))"
            )
        tiers = tuple(validate_members(members, "heads") for members in self.heads)
        if not all(tiers):
            raise ConfigError(f"heads={self.heads!r} has an empty tier; leave it out")
        object.__setattr__(self, "heads", tiers)
        if self.heads and (self.share, self.most) != (None, None):
            raise ConfigError(
                f"heads cannot be given with share={self.share} or most={self.most}, which choose "
                "them; leave one out (as text: retrieval:heads=8.0+17)"
            )
        for name in ("share", "most", "window"):
            value = getattr(self, name)
            if value is not None:
                validate_number(name, value, 0.5)
                no_tiers = name == "most" and value == 0
                if not (0.0 < value < 1.0 or no_tiers):
                    raise ConfigError(
                        f"{name}={value} as a share must be in (0, 1); try {name}=0.5"
                    )
        if self.without_profile not in ("ladder", "depth"):
            raise ConfigError(
                f"without_profile={self.without_profile!r} must be 'ladder' or 'depth'; try "
                "without_profile='ladder'"
            )
        Ladder.like(self)

    @property
    def needs_profile(self) -> bool:
        """Whether the heads are chosen by the model's head profile."""
        return not self.heads

    def bind(self, shape: ModelShape, capacity: int) -> tuple[BoundGroup, ...]:
        """Return the history first, then the tiers, then the streaming heads."""
        tiers = self._tiers(shape)
        if not tiers:
            return self._history(shape.num_layers, self.evict_batch).bind(shape, capacity)
        least = self._least(shape, capacity)
        num_heads = shape.num_heads
        pairs = [pairs_of(members, num_heads) for members in tiers]
        named = {pair for tier in pairs for pair in tier}
        streaming = [
            (layer, head)
            for layer, heads in enumerate(num_heads)
            for head in range(heads)
            if (layer, head) not in named
        ]
        if not streaming:
            raise ConfigError(
                "every KV head is among the retrieval heads, so none is left with a window; name "
                "fewer heads, or try policy='ladder'"
            )
        total = sum(num_heads)

        def capacity_of(num_before: int) -> int:
            """Tokens that so many heads can hold while all others have their window."""
            return least + (capacity - least) * total // num_before

        num_before = len(pairs[0])
        depth = len({layer for layer, _ in pairs[0]})
        evict_batch = self._batch(depth, capacity, least, capacity_of(num_before))
        history = self._history(depth, evict_batch)
        groups = [Group(history, tuple(pairs[0]), capacity_of(num_before))]
        for tier in (*pairs[1:], streaming):
            window = ShrinkingWindow(
                least=least,
                growing_heads=num_before,
                window_heads=len(tier),
                sinks=self.sinks,
                evict_batch=evict_batch,
                positions=self.positions,
            )
            num_before += len(tier)
            groups.append(Group(window, tuple(tier), capacity_of(num_before)))
        return Groups(tuple(groups)).bind(shape, UNBOUNDED)

    def _least(self, shape: ModelShape, capacity: int) -> int:
        """Return the capacity of the streaming heads in the end."""
        least = max(1, int(capacity * self.window))
        if self.heads or shape.profile is None:
            return least
        # What a narrower window costs was not measured.
        measured = shape.profile.sinks + shape.profile.window
        return max(least, min(measured, capacity // 2))

    def _tiers(self, shape: ModelShape) -> Tiers:
        """Return the history and its tiers; nothing where one ladder takes their place."""
        if self.heads:
            return self.heads
        profile = shape.profile
        if profile is not None:
            order: Sequence[Member] = profile.order
            # Windows must have bytes to give, even where the loss falls late or never.
            most_heads = round(_MOST * len(order))
            count = min(profile.heads_that_leave(_LOSS_LEFT), most_heads)
        elif self.without_profile == "depth":
            order = layers_by_depth(shape.num_layers)
            count = round(_SHARE_BY_DEPTH * len(order))
        else:
            return ()
        if len(order) == 1:
            return ()
        if self.share is not None:
            count = round(self.share * len(order))
        most = _MOST if self.most is None else self.most
        return split_by_importance(order, count, round(most * len(order)))

    def _batch(self, depth: int, capacity: int, least: int, history_capacity: int) -> int:
        """Return the slots that every group frees at once: a multiple of what the history can.

        Args:
            depth: layers of the history.
            capacity: of which `evict_batch` may be a share; a share is cut to what can be freed.
            least: capacity of the streaming heads in the end.
            history_capacity: tokens that the history may hold.

        Raises:
            ConfigError: the window or the history is too small.
        """
        unit = self._history_schedule(depth, 1, history_capacity).evict_unit
        batch = -(-in_slots(self.evict_batch, capacity) // unit) * unit
        if isinstance(self.evict_batch, float):
            batch = max(unit, min(batch, (least - self.sinks) // unit * unit))
            # The history loses up to a batch of its capacity, to be full when the others are.
            capacity_left = history_capacity - batch + 1
            batch = self._history_schedule(depth, batch, capacity_left).evict_batch
        if least < self.sinks + batch:
            raise ConfigError(
                f"streaming heads have {least} of capacity={capacity} tokens (window="
                f"{self.window}), and at least {self.sinks + batch} = sinks {self.sinks} + "
                f"evict_batch {batch} are needed; try a larger budget or window"
            )
        return batch

    def _history_schedule(self, depth: int, evict_batch: int, capacity: int) -> Schedule:
        try:
            return self._history(depth, evict_batch).schedule(depth, capacity)
        except ConfigError as error:
            raise ConfigError(
                f"the history of the retrieval heads, {capacity} tokens in {depth} layers: {error}"
            ) from error

    def _history(self, num_layers: int, evict_batch: float) -> LayerPolicy:
        if num_layers == 1:
            # One layer alone has no ladder to stand on.
            return Streaming(sinks=self.sinks, evict_batch=evict_batch, positions=self.positions)
        return Ladder.like(self, evict_batch=evict_batch)


def split_by_importance(order: Sequence[Member], count: int, most: int) -> Tiers:
    """Return a history and its tiers.

    Args:
        order: layers or pairs, the most important first.
        count: of them in the history; one at least, and all but one at most.
        most: of them in the history and all tiers together; all but one at most. Each tier adds a
            quarter of what stands before it.
    """
    end = max(1, min(count, len(order) - 1))
    parts = [tuple(order[:end])]
    last = min(most, len(order) - 1)
    while end < last:
        start, end = end, min(last, end + max(1, end // 4))
        parts.append(tuple(order[start:end]))
    return tuple(parts)

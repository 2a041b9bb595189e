"""A long history for the retrieval heads, a short window for the streaming heads, at equal bytes.

Few KV heads copy from far back ("retrieval heads", arXiv 2404.15574); all others do as well with a
window. Which they are comes from the model's head profile or from the user, before the first
token, so what is kept still depends on counts alone.
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
from lacache.policies.schedule import UNBOUNDED
from lacache.policies.shrinking_window import ShrinkingWindow
from lacache.policies.streaming import Streaming

Tiers = tuple[tuple[Member, ...], ...]


def _parse_tiers(text: str) -> Tiers:
    return tuple(map(parse_members, text.split("/")))


def _format_tiers(tiers: Tiers) -> str:
    return "/".join(map(format_members, tiers))


_TIERS_FORM = text_form(_parse_tiers, _format_tiers, "8.0+17/12.1")


@final
@dataclass(frozen=True, kw_only=True)
class RetrievalHeads(Policy):
    """Retrieval heads get a history in the bytes that streaming heads, with a window, leave.

    The history never ends, as it is a ladder over its own layers: once its capacity is reached,
    its older part is compacted again and again.

    Args:
        share: of the KV heads, how many keep a history, most important first, by the model's head
            profile. Give it or `heads`.
        most: share of the KV heads in the history and all tiers together. Each tier adds a
            quarter of what stands before it; it holds everything until the history and the tiers
            before it need its bytes, so less important heads lose theirs first.
        heads: layers, or pairs (layer, KV head), in place of a profile: the history first, then
            the tiers.
        window: capacity of the streaming heads in the end, as a share of the whole. Until the
            history has grown so long, they hold what it leaves.
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

    share: float | None = None
    most: float = 0.0
    heads: Tiers = field(default=(), metadata=_TIERS_FORM)
    window: float = 0.5
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
        "balanced": {"share": 0.07, "most": 0.3, "window": 0.75},
        "local": {"share": 0.1, "window": 0.85},
        "global": {"share": 0.1, "most": 0.3, "window": 0.25, "without_profile": "depth"},
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
        if self.heads and (self.share is not None or self.most):
            raise ConfigError(
                f"heads cannot be given with share={self.share} or most={self.most}, which choose "
                "them; leave one out (as text: retrieval:heads=8.0+17)"
            )
        if not self.heads and self.share is None:
            raise ConfigError(
                "a policy of retrieval heads needs share or heads; try retrieval:share=0.07 (by "
                "the model's head profile) or retrieval:heads=8.0+17"
            )
        for name in ("share", "most", "window"):
            value = getattr(self, name)
            if value is not None:
                validate_number(name, value, 0.5)
                low_is_fine = name == "most" and value == 0
                if not (0.0 < value < 1.0 or low_is_fine):
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
        return self.share is not None

    def bind(self, shape: ModelShape, capacity: int) -> tuple[BoundGroup, ...]:
        """Return the history first, then the tiers, then the streaming heads."""
        tiers = self._tiers(shape)
        if not tiers:
            return Ladder.like(self).bind(shape, capacity)
        least = max(1, int(capacity * self.window))
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

    def _tiers(self, shape: ModelShape) -> Tiers:
        """Return the history and its tiers; nothing where one ladder takes their place."""
        if self.share is None:
            return self.heads
        order: Sequence[Member]
        if shape.profile is not None:
            order = shape.profile.order
        elif self.without_profile == "depth":
            order = layers_by_depth(shape.num_layers)
        else:
            return ()
        return split_by_importance(order, self.share, self.most)

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
        unit = self._history(depth, 1).schedule(depth, history_capacity).evict_unit
        batch = -(-in_slots(self.evict_batch, capacity) // unit) * unit
        if isinstance(self.evict_batch, float):
            batch = max(unit, min(batch, (least - self.sinks) // unit * unit))
            # The history loses up to a batch of its capacity, to be full when the others are.
            history = self._history(depth, batch)
            batch = history.schedule(depth, history_capacity - batch + 1).evict_batch
        if least < self.sinks + batch:
            raise ConfigError(
                f"window={self.window} of capacity={capacity} is {least} tokens, and at least "
                f"{self.sinks + batch} = sinks {self.sinks} + evict_batch {batch} are needed; try "
                "a larger budget or window"
            )
        return batch

    def _history(self, num_layers: int, evict_batch: int) -> LayerPolicy:
        if num_layers == 1:
            # One layer alone has no ladder to stand on.
            return Streaming(sinks=self.sinks, evict_batch=evict_batch, positions=self.positions)
        return Ladder.like(self, evict_batch=evict_batch)


def split_by_importance(order: Sequence[Member], share: float, most: float) -> Tiers:
    """Return a history and its tiers.

    Args:
        order: layers or pairs, the most important first.
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

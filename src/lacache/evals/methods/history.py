"""A long history for the KV heads that need one, by the model's profile."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from lacache.cache import LaCache, ReadingCache
from lacache.cache.facts import model_facts
from lacache.cache.fingerprint import fingerprint
from lacache.cache.profiles import model_profile
from lacache.core import HistoryConfig
from lacache.core.checks import check_int
from lacache.core.errors import ConfigError
from lacache.core.groups import Member
from lacache.core.history import split_by_need
from lacache.core.profile import Profile, layers_by_depth
from lacache.evals.methods.method import Method
from lacache.evals.methods.preset import plan_sha256
from lacache.evals.methods.settings import REFILL, check_share, refill_slots, settings_record
from lacache.evals.records import Record

MEMBERS = ("heads", "layers", "depth")

_CAPACITY = 1_000


@final
@dataclass(frozen=True)
class History(Method):
    """Few KV heads keep a long history, thinned by a ladder; the others a short window.

    Args:
        share: of all KV heads (or layers), how many keep a history; the neediest first.
        most: share of those with a history or in a tier, each of which adds a quarter and gives
            way to those before it; 0 for no tiers.
        members: "heads" or "layers" by the model's profile, or "depth": layers as presets guess
            them for a model without a profile.
        window: capacity of the others in the end, as a share of the capacity.
        sinks: first tokens, never evicted.
        refill: share of its capacity that one compaction of a group frees.
        recent: share of the history's capacity that no compaction touches; without it, half.
        span: of the history's ladder, in its own layers; without it, half of them.
        overlap: likewise; without it 0 beside a span, else four fifths of the span.
        geometry: "interleaved" or "consecutive".
        unit: neighbouring tokens that are kept or dropped together.
    """

    name: ClassVar[str] = "history"

    share: float = 0.16
    most: float = 0.0
    members: str = "heads"
    window: float = 0.25
    sinks: int = 4
    refill: float = REFILL
    recent: float | None = None
    span: int | None = None
    overlap: int | None = None
    geometry: str = "interleaved"
    unit: int = 1

    def __post_init__(self) -> None:
        if self.members not in MEMBERS:
            raise ConfigError(f"members={self.members!r} must be heads, layers or depth; try heads")
        check_share("share", self.share)
        check_share("most", self.most)
        check_share("window", self.window)
        check_share("refill", self.refill)
        if self.recent is not None:
            check_share("recent", self.recent)
        check_int("sinks", self.sinks, 0)
        check_int("unit", self.unit, 1)

    def open(self, model: Any, *, capacity: int, dense: bool) -> ReadingCache:
        """An empty cache with a group for the history, each tier and the others."""
        profile = model_profile(model)
        if profile is None and self.members != "depth":
            raise ConfigError(
                f"{type(model).__name__} with fingerprint {fingerprint(model)} has no profile; run "
                "lacache calibrate first"
            )
        plan = self.plan(capacity, profile, model_facts(model).num_heads)
        return LaCache.from_model(model, plan, prefill="dense" if dense else "segmented")

    def plan(
        self, capacity: int, profile: Profile | None, num_heads: tuple[int, ...]
    ) -> HistoryConfig:
        """The plan for a capacity in tokens."""
        order: tuple[Member, ...]
        if self.members == "depth":
            order = layers_by_depth(len(num_heads))
        else:
            assert profile is not None  # checked by the caller
            order = profile.order if self.members == "heads" else profile.layers()
        history, *tiers = split_by_need(order, self.share, self.most)
        config = HistoryConfig(
            capacity=capacity,
            history=history,
            tiers=tuple(tiers),
            window=self.window,
            sinks=self.sinks,
            refill=refill_slots(self.refill, max(1, int(self.window * capacity))),
            span=self.span,
            overlap=self.overlap,
            geometry=self.geometry,
            unit=self.unit,
        )
        if self.recent is None:
            return config
        recent = int(self.recent * config.history_capacity(num_heads))
        return replace(config, recent=recent)

    def inputs_sha256(self, model: Any) -> str:
        """SHA-256 of the plan for a certain capacity, which follows the profile."""
        profile = model_profile(model)
        if profile is None and self.members != "depth":
            return ""
        return plan_sha256(self.plan(_CAPACITY, profile, model_facts(model).num_heads))

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)

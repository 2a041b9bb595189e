"""A long history for the KV heads that need one, by the model's profile."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.methods.method import Method
from lacache.evals.methods.preset import plan_sha256
from lacache.evals.methods.settings import (
    EVICT_BATCH,
    evict_batch_slots,
    settings_record,
    validate_share,
)
from lacache.models.fingerprint import fingerprint, model_profile
from lacache.models.model_info import model_info
from lacache.policies import RetrievalHeads
from lacache.policies.groups import Member
from lacache.policies.head_profile import HeadProfile, layers_by_depth
from lacache.policies.retrieval_heads import split_by_need

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
        evict_batch: share of its capacity that one compaction of a group frees.
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
    evict_batch: float = EVICT_BATCH
    recent: float | None = None
    span: int | None = None
    overlap: int | None = None
    geometry: str = "interleaved"
    unit: int = 1

    def __post_init__(self) -> None:
        if self.members not in MEMBERS:
            raise ConfigError(f"members={self.members!r} must be heads, layers or depth; try heads")
        validate_share("share", self.share)
        validate_share("most", self.most)
        validate_share("window", self.window)
        validate_share("evict_batch", self.evict_batch)
        if self.recent is not None:
            validate_share("recent", self.recent)
        validate_int("sinks", self.sinks, 0)
        validate_int("unit", self.unit, 1)

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty cache with a group for the history, each tier and the others."""
        profile = model_profile(model)
        if profile is None and self.members != "depth":
            raise ConfigError(
                f"{type(model).__name__} with fingerprint {fingerprint(model)} has no profile; run "
                "lacache calibrate first"
            )
        plan = self.plan(capacity, profile, model_info(model).num_heads)
        return LaCache.from_model(model, plan, prefill="dense" if dense else "chunked")

    def plan(
        self, capacity: int, profile: HeadProfile | None, num_heads: tuple[int, ...]
    ) -> RetrievalHeads:
        """The plan for a capacity in tokens."""
        order: tuple[Member, ...]
        if self.members == "depth":
            order = layers_by_depth(len(num_heads))
        else:
            assert profile is not None  # checked by the caller
            order = profile.order if self.members == "heads" else profile.layers()
        history, *tiers = split_by_need(order, self.share, self.most)
        config = RetrievalHeads(
            capacity=capacity,
            history=history,
            tiers=tuple(tiers),
            window=self.window,
            sinks=self.sinks,
            evict_batch=evict_batch_slots(self.evict_batch, max(1, int(self.window * capacity))),
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
        return plan_sha256(self.plan(_CAPACITY, profile, model_info(model).num_heads))

    def record(self) -> Record:
        """Name and settings."""
        return settings_record(self.name, self)

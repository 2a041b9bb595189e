"""What the buffers of a model and a plan look like, and so how many bytes they take."""

from dataclasses import dataclass
from typing import final

import torch

from lacache.cache.facts import ModelFacts
from lacache.core.errors import ConfigError, UnsupportedModelError
from lacache.core.schedule import UNBOUNDED, BoundGroup, Plan


@final
@dataclass(frozen=True)
class StaticShape:
    """Known before anything is allocated, and for ever.

    Args:
        facts: of the model.
        plan: what is kept.

    Raises:
        ConfigError: the plan keeps everything, so nothing fixed can hold it.
        UnsupportedModelError: the model has layers with a state of another kind.
    """

    facts: ModelFacts
    plan: Plan

    def __post_init__(self) -> None:
        if self.facts.linear:
            raise UnsupportedModelError(
                f"layer {self.facts.linear[0]} is linear attention, whose state the engine does "
                "not hold; use LaCache.from_model and lacache.stream with this model"
            )
        if any(group.schedule.capacity == UNBOUNDED for group in self.groups):
            raise ConfigError(
                f"{type(self.plan).__name__} keeps every token, and the engine's memory is fixed; "
                "give a budget, or use LaCache.from_model and lacache.stream"
            )

    @property
    def groups(self) -> tuple[BoundGroup, ...]:
        """The plan's groups in this model."""
        return self.plan.bind_groups(self.facts.num_heads)

    @property
    def row_bytes(self) -> int:
        """Of one sequence, whatever its length: keys twice, where positions move them."""
        width = torch.finfo(self.facts.dtype).bits // 8
        total = 0
        for group in self.groups:
            for depth, heads in group.heads.items():
                layer = self.facts.growing[depth]
                copies = 1 if layer.rotation is None else 2
                per_slot = copies * layer.key_size + layer.value_size
                total += len(heads) * group.schedule.capacity * per_slot * width
        for ring in self.facts.sliding:
            total += ring.num_heads * ring.window * (ring.key_size + ring.value_size) * width
        return total

"""The base class of policies that evict by a score of the text, and which slots a score keeps."""

from abc import ABC
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies import BoundGroup, ModelShape, Policy
from lacache.policies.policy import EVICT_BATCH, SINKS, in_slots, validate_slots


@dataclass(frozen=True)
class ScoredPolicy(Policy, ABC):
    """Each KV head keeps the tokens of highest score. Subclasses document their own settings.

    Args:
        sinks: first tokens, never evicted.
        evict_batch: slots that one compaction evicts, or a share of the capacity.

    Raises:
        ConfigError: a value out of range.
    """

    sinks: int = SINKS
    evict_batch: float = EVICT_BATCH

    def __post_init__(self) -> None:
        validate_int("sinks", self.sinks, 0)
        validate_slots("evict_batch", self.evict_batch, 1)

    def protected(self, num_held: int) -> int:
        """Return how many of the newest of `num_held` tokens are never evicted: here none."""
        return 0

    def at(self, capacity: int) -> Self:
        """Return this policy with settings that are shares of the capacity in tokens.

        Raises:
            ConfigError: the capacity is too small.
        """
        return self

    def capacities(self, capacity: int, num_layers: int) -> tuple[int, ...]:
        """Return the capacity of each layer; their mean is `capacity`."""
        return (capacity,) * num_layers

    def slots_per_compaction(self, capacity: int) -> int:
        """Return `evict_batch` in slots."""
        return in_slots(self.evict_batch, capacity)

    def bind(self, shape: ModelShape, capacity: int) -> tuple[BoundGroup, ...]:
        """Refuse: what is kept depends on the text, so there is no schedule.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"policy {self} is a baseline of lacache eval, which has no plan; use one such as "
            "ladder or streaming"
        )


def best(scores: Tensor, count: int, *, sinks: int, protected: int) -> Tensor:
    """Return the slots [H, count] of the tokens to keep, in increasing order.

    The first `sinks` and the newest `protected` stay; of tokens with equal scores the older goes.

    Args:
        scores: of the tokens held [H, N].
        count: how many to keep, from `sinks + protected` to N.
        sinks: first tokens, never evicted.
        protected: newest tokens, not evicted now.
    """
    num_held = scores.shape[-1]
    scores = scores.float().clone()
    scores[:, :sinks] = torch.inf
    scores[:, num_held - protected :] = torch.inf
    order = scores.argsort(dim=-1, stable=True)
    return order[:, num_held - count :].sort(dim=-1).values

"""Binding: the one place where a policy and a budget meet a model and become schedules."""

from contextlib import suppress
from dataclasses import dataclass
from typing import final

from lacache.errors import ConfigError
from lacache.policies.budget import Budget, BudgetLike, parse_budget
from lacache.policies.groups import Group, Groups
from lacache.policies.members import Member
from lacache.policies.policy import BoundGroup, LayerPolicy, ModelShape, Policy
from lacache.policies.schedule import UNBOUNDED


@final
@dataclass(frozen=True)
class BoundPolicy:
    """A policy bound to one model, at one capacity.

    Args:
        policy: its settings.
        capacity: tokens per layer, averaged over KV heads; UNBOUNDED where the policy takes no
            budget.
        groups: KV heads and their schedules.
        shape: of the model.
    """

    policy: Policy
    capacity: int
    groups: tuple[BoundGroup, ...]
    shape: ModelShape

    def __str__(self) -> str:
        return (
            str(self.policy) if self.capacity == UNBOUNDED else f"{self.policy} at {self.capacity}"
        )

    def explicit(self) -> Groups:
        """Return the same as groups with capacities, which need no profile and no budget."""
        return Groups(tuple(self._group(group, group.policy) for group in self.groups))

    @property
    def identity(self) -> str:
        """Text that is equal for equal schedules: explicit groups with every setting, in slots.

        It does not depend on how the policy was written, nor on defaults of this version.
        """
        resolved = (
            self._group(g, g.policy.resolved(len(g.heads), g.schedule.capacity))
            for g in self.groups
        )
        return Groups(tuple(resolved)).text(all_settings=True)

    def _group(self, group: BoundGroup, policy: LayerPolicy) -> Group:
        members: list[Member] = []
        for layer, heads in group.heads.items():
            whole = len(heads) == self.shape.num_heads[layer]
            members += [layer] if whole else [(layer, head) for head in heads]
        capacity = group.schedule.capacity
        return Group(policy, tuple(members), None if capacity == UNBOUNDED else capacity)


def validate_budget(policy: Policy, budget: BudgetLike | None) -> Budget | None:
    """Return the budget of a policy, or None for a policy that takes none.

    Raises:
        ConfigError: the budget is missing, is none, or cannot be given with this policy.
    """
    if not policy.takes_budget:
        if budget is not None:
            raise ConfigError(
                f"budget={budget} cannot be given with policy {str(policy)[:60]!r}, which is "
                "unbounded or has capacities of its own; leave the budget out"
            )
        return None
    if budget is None:
        raise ConfigError("no budget was given; try budget=512, 0.5 (share) or '64MiB'")
    if isinstance(budget, Policy):
        raise ConfigError(
            f"budget={budget} is a policy; give tokens, a share or bytes as the budget, and "
            f"policy={str(budget)!r}"
        )
    return parse_budget(budget)


def bind_policy(
    policy: Policy,
    budget: BudgetLike | None,
    shape: ModelShape,
    *,
    bytes_per_token: int,
    prompt_tokens: int,
) -> BoundPolicy:
    """Return what a policy keeps in a model.

    Args:
        policy: which tokens are kept.
        budget: how many; None for a policy that takes no budget.
        shape: of the model.
        bytes_per_token: keys and values of one token over all layers with a growing cache.
        prompt_tokens: length of the first prompt, of which a budget may be a share.

    Raises:
        ConfigError: policy or budget cannot work for this model.
    """
    valid = validate_budget(policy, budget)
    if valid is None:
        return BoundPolicy(policy, UNBOUNDED, policy.bind(shape, UNBOUNDED), shape)

    def bound(smallest: int) -> BoundPolicy:
        capacity = valid.capacity(
            bytes_per_token=bytes_per_token, prompt_tokens=prompt_tokens, smallest=smallest
        )
        return BoundPolicy(policy, capacity, policy.bind(shape, capacity), shape)

    # The least capacity that works takes dozens of trials; only a budget below it needs it.
    with suppress(ConfigError):
        return bound(1)
    return bound(policy.smallest_capacity(shape))

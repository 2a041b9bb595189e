"""What a user says to vLLM about the ladder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies import Full, Ladder, LayerPolicy, Schedule, parse_policy

KEY = "lacache"
"""The key of vLLM's `additional_config` that holds the settings."""
VARIABLE = "LACACHE_VLLM"
"""The environment variable that holds them as JSON, where the configuration has none."""


@final
@dataclass(frozen=True)
class Settings:
    """A bounded policy for all layers.

    Args:
        budget: slots of each sequence in each layer.
        policy: one schedule for all layers.

    Raises:
        ConfigError: the budget is no number of tokens, or the policy divides layers or is
            unbounded.
    """

    budget: int
    policy: LayerPolicy = field(default_factory=Ladder)

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int) or isinstance(self.budget, bool):
            raise ConfigError(
                f"budget={self.budget!r} must be a number of tokens, as vLLM shares out memory "
                "before it sees a prompt; try budget=512"
            )
        validate_int("budget", self.budget, 1)
        if not isinstance(self.policy, LayerPolicy):
            raise ConfigError(
                f"policy={self.policy} gives KV heads different capacities, and vLLM's pages hold "
                "one policy for all layers; try policy='ladder', or lacache.Engine"
            )
        if isinstance(self.policy, Full):
            raise ConfigError("policy='full' must be bounded; try 'ladder', or leave lacache out")

    @classmethod
    def read(
        cls, additional_config: Mapping[str, Any], environment: Mapping[str, str]
    ) -> "Settings | None":
        """The settings, or None where there are none.

        Args:
            additional_config: of vLLM.
            environment: variables.

        Raises:
            ConfigError: they are no settings.
        """
        given: object = additional_config.get(KEY)
        where = f"additional_config[{KEY!r}]"
        if given is None and environment.get(VARIABLE):
            where = VARIABLE
            try:
                given = json.loads(environment[VARIABLE])
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f"{VARIABLE}={environment[VARIABLE]!r} must be JSON ({error}); try "
                    f"""{VARIABLE}='{{"budget": 512}}'"""
                ) from error
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise ConfigError(f'{where}={given!r} must be a dict; try {{"budget": 512}}')
        options = dict(given)
        if "budget" not in options:
            raise ConfigError(f'{where} must have a budget; try {{"budget": 512}}')
        for name in options.keys() - {"budget", "policy"}:
            raise ConfigError(
                f"{where} has no setting {name!r}; settings of a policy stand in its text, such "
                "as ladder:span=15:overlap=0"
            )
        policy: Any = parse_policy(options.get("policy", "ladder"))
        return cls(options["budget"], policy)

    def schedule(self, num_layers: int) -> Schedule:
        """The schedule of a model with that many layers.

        Raises:
            ConfigError: these settings cannot work for it, or nothing would be bounded.
        """
        return self.policy.schedule(num_layers, self.budget)

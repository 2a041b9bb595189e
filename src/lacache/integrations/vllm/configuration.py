"""vLLM's `additional_config` for a model, with its head profile."""

from pathlib import Path
from typing import Any

from lacache.integrations.vllm.settings import KEY, Settings
from lacache.models import load_model
from lacache.models.fingerprint import model_shape
from lacache.policies import DEFAULT_POLICY, BudgetLike, Policy, parse_policy, validate_budget


def additional_config(
    model: str | Path | None,
    budget: BudgetLike | None = None,
    policy: Policy | str = DEFAULT_POLICY,
) -> dict[str, Any]:
    """Return `additional_config` for `vllm.LLM`, with what is known of the model's heads.

    Loads the model to recognise its weights, and frees it.

    Args:
        model: as for `lacache.load_model`.
        budget: tokens per layer, or bytes such as "64MiB", for each sequence.
        policy: which tokens are kept.

    Raises:
        ConfigError: budget or policy do not work in vLLM.
        InputError: the head profile cannot be read.
        ModelError: there is no such model.
    """
    return {KEY: settings_for(load_model(model).model, budget, policy).to_json()}


def settings_for(model: Any, budget: BudgetLike | None, policy: Policy | str) -> Settings:
    """Return the settings for a loaded model, with its head profile if the policy needs one.

    Issues a HeadProfileWarning if it needs one and there is none.

    Args:
        model: of transformers.
        budget: as for `additional_config`.
        policy: likewise.
    """
    policy = parse_policy(policy)
    settings = Settings(validate_budget(policy, budget), policy)
    profile = model_shape(model, policy).profile if policy.needs_profile else None
    return Settings(settings.budget, policy, profile)

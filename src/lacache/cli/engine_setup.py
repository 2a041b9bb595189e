"""Setup of what a command runs: the options of cache and engine, and the engine or cache itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lacache.cli.preflight import validate_bytes
from lacache.common.files import cache_home
from lacache.common.validation import validate_kv_dtype, validate_prefill, validate_weights
from lacache.errors import ConfigError
from lacache.policies import Budget, Full, Policy, parse_policy, validate_budget

if TYPE_CHECKING:
    from rich.console import Console

    from lacache.cache import LaCache
    from lacache.engine.engine import Engine
    from lacache.engine.generator import TextGenerator
    from lacache.engine.sampling import Sampling

DEFAULT_BUDGET = "512"


@final
@dataclass(frozen=True)
class CacheOptions:
    """Which tokens a cache keeps, how many, and how a prompt is prefilled.

    Args:
        policy: which tokens are kept.
        budget: how many; None for a policy that takes no budget.
        prefill: "chunked" or "dense".
    """

    policy: Policy
    budget: Budget | None
    prefill: str = "chunked"

    @classmethod
    def parse(cls, budget: str | None, policy: str, prefill: str = "chunked") -> CacheOptions:
        """Return what a user gave, before a model is loaded for nothing.

        Raises:
            ConfigError: no model could work with it.
            InputError: a file with a policy cannot be read.
        """
        validate_prefill(prefill)
        parsed = parse_policy(policy)
        if budget is None and parsed.takes_budget:
            budget = DEFAULT_BUDGET
        return cls(parsed, validate_budget(parsed, budget), prefill)

    @property
    def runs_without_engine(self) -> str:
        """Why the options need a `LaCache`, as they have no constant size; "" where they do not."""
        if isinstance(self.policy, Full):
            return "a full cache runs without"
        return "dense prefill runs without" if self.prefill == "dense" else ""

    def new_cache(self, model: Any, kv_dtype: str | None = None) -> LaCache:
        """Return a new cache for `model`.

        Args:
            model: a model of transformers.
            kv_dtype: what keys and values are stored in; None is the model's own type.

        Raises:
            ConfigError: the options cannot work for this model.
            UnsupportedModelError: the model's caches or positions are not understood.
        """
        from lacache.cache import LaCache

        return LaCache(
            model,
            self.budget,
            self.policy,
            prefill=self.prefill,  # type: ignore[arg-type]
            kv_dtype=kv_dtype,
        )


@final
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of an engine besides its cache, validated before a model is loaded for nothing.

    Args:
        compile: whether to compile the decode step.
        kv_dtype: dtype of keys and values; None is the model's.
        weights: dtype of the linear layers' weights; None is the model's.

    Raises:
        ConfigError: there is no such type.
        MissingExtraError: a type needs a package that is not installed.
    """

    compile: bool
    kv_dtype: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        validate_kv_dtype(self.kv_dtype)
        validate_weights(self.weights)

    def validate_unused(self, why: str) -> None:
        """Check that no option was given that only an engine supports.

        Args:
            why: there is no engine; "" if there is one.

        Raises:
            ConfigError: one was given.
        """
        if why and self.weights is not None:
            raise ConfigError(f"--weights {self.weights} needs the engine, and {why}; leave it out")


def generator_factory(
    model: Any,
    cache_options: CacheOptions,
    engine_options: EngineOptions,
    prompt_tokens: int,
    sampling: Sampling,
) -> Callable[[], TextGenerator]:
    """Return a function that makes a new generator for `model`.

    A generator is a session of an engine with one batch slot if the engine supports the options
    and the model, and uses a `LaCache` otherwise.

    Args:
        model: a model of transformers.
        cache_options: which tokens are kept.
        engine_options: how the engine computes.
        prompt_tokens: length of the prompt, of which a budget may be a share.
        sampling: how tokens are chosen.

    Raises:
        ConfigError: the options cannot work for this model.
        InputError: a head profile cannot be read.
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    from lacache.engine.cache_stream import CacheGenerator
    from lacache.models.model_info import model_info

    why = cache_options.runs_without_engine
    if model_info(model).linear:
        # The engine does not store their state.
        why = "models with linear attention run without"
    engine_options.validate_unused(why)
    if why:
        cache = cache_options.new_cache(model, engine_options.kv_dtype)
        return lambda: CacheGenerator(model, cache, sampling)
    engine = new_engine(model, cache_options, engine_options, prompt_tokens=prompt_tokens)
    return lambda: engine.open(sampling)


def new_engine(
    model: Any,
    cache_options: CacheOptions,
    engine_options: EngineOptions,
    *,
    prompt_tokens: int | None = None,
    max_sequences: int = 1,
) -> Engine:
    """Return an engine for `model`, compiled if the options ask for it and its step is not fused.

    Args:
        model: a model of transformers.
        cache_options: which tokens are kept.
        engine_options: how the engine computes.
        prompt_tokens: length of the prompt, of which a budget may be a share.
        max_sequences: most sequences at the same time.

    Raises:
        ConfigError: the options cannot work for this model.
        InputError: a head profile cannot be read.
        UnsupportedModelError: the model is not understood.
    """
    from rich.console import Console

    from lacache.cache.encoded import bytes_per_token
    from lacache.engine.engine import Engine
    from lacache.models.model_info import model_info

    budget = cache_options.budget
    is_share = budget is not None and budget.share > 0
    if budget is not None and budget.tokens:
        num_bytes = budget.tokens * bytes_per_token(model_info(model), engine_options.kv_dtype)
        validate_bytes(str(budget), num_bytes, max_sequences)

    console = Console(stderr=True)
    with console.status("starting the engine (half a minute the first time)"):
        engine = Engine(
            model,
            budget,
            cache_options.policy,
            prompt_tokens=prompt_tokens if is_share else None,
            max_sequences=max_sequences,
            kv_dtype=engine_options.kv_dtype,
            weights=engine_options.weights,
            compile=engine_options.compile,
        )
    if engine_options.compile and not engine.fused:
        _compile(engine, console)
    return engine


def _compile(engine: Engine, console: Console) -> None:
    # Torch's default folder is deleted when the machine restarts.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "compiled"))
    start = time.perf_counter()
    message = "compiling (minutes the first time, seconds from then on)"
    if not console.is_terminal:  # where no status is shown
        console.print(message, style="dim")
    with console.status(message):
        engine.warm_up()
    if engine.compile_seconds is not None:
        console.print(f"compiled in {time.perf_counter() - start:.0f} s", style="dim")

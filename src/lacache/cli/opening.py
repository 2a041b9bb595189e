"""What reads and writes the texts of a command: an engine where that can be, else a cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lacache.cli.cache_options import CacheOptions
from lacache.common.home import cache_home
from lacache.common.validation import validate_kv_dtype, validate_weights
from lacache.errors import ConfigError
from lacache.policies import Full

if TYPE_CHECKING:
    from lacache.engine.engine import Engine
    from lacache.engine.generator import TextGenerator
    from lacache.engine.sampling import Sampling


@final
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the user gave; None is the model's own type.

    Raises:
        ConfigError: there is no such type.
        MissingExtraError: one of them needs an extra.
    """

    compile: bool
    kv_dtype: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        # Before a model is loaded for nothing.
        validate_kv_dtype(self.kv_dtype)
        validate_weights(self.weights)

    def validate_needless(self, why: str) -> None:
        """Refuse what only an engine can do.

        Raises:
            ConfigError: it was asked for.
        """
        for option, value in (("--kv-dtype", self.kv_dtype), ("--weights", self.weights)):
            if value is not None:
                raise ConfigError(f"{option} {value} needs the engine, and {why}; leave it out")


def opener(
    model: Any,
    cache_options: CacheOptions,
    engine_options: EngineOptions,
    prompt_tokens: int,
    sampling: Sampling,
) -> Callable[[], TextGenerator]:
    """What makes a new text for `model`: a row of an engine with one row, where that can be.

    Args:
        model: of transformers.
        cache_options: what to keep.
        engine_options: how to run.
        prompt_tokens: what a share is of.
        sampling: how tokens are chosen.

    Raises:
        ConfigError: the options cannot work for this model.
        InputError: a head profile cannot be read.
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    from lacache.engine.stream import CacheGenerator
    from lacache.models.model_info import model_info

    info = model_info(model)
    # Neither of the first two is of fixed size; the state of linear layers it doesn't hold.
    why_not = (
        "a full cache runs without"
        if isinstance(cache_options.policy, Full)
        else "dense prefill runs without"
        if cache_options.prefill == "dense"
        else "models with linear attention run without"
        if info.linear
        else None
    )
    if why_not is not None:
        engine_options.validate_needless(why_not)
        cache = cache_options.new_cache(model)
        return lambda: CacheGenerator(model, cache, sampling)
    engine = new_engine(model, cache_options, engine_options, prompt_tokens)
    return lambda: engine.open(sampling)


def new_engine(
    model: Any,
    cache_options: CacheOptions,
    engine_options: EngineOptions,
    prompt_tokens: int,
    max_sequences: int = 1,
) -> Engine:
    """An engine for `model`.

    Args:
        model: of transformers.
        cache_options: what to keep.
        engine_options: how to run.
        prompt_tokens: what a share is of.
        max_sequences: batch slots.

    Raises:
        ConfigError: the options cannot work for this model.
        InputError: a head profile cannot be read.
        UnsupportedModelError: the model is not understood.
    """
    from lacache.engine.engine import Engine

    def make() -> Engine:
        return Engine(
            model,
            cache_options.budget,
            cache_options.policy,
            prompt_tokens=prompt_tokens,
            max_sequences=max_sequences,
            kv_dtype=engine_options.kv_dtype,
            weights=engine_options.weights,
            compile=engine_options.compile,
        )

    return _compiled(make) if engine_options.compile else make()


def _compiled(make: Callable[[], Engine]) -> Engine:
    from rich.console import Console

    # Where torch keeps it by default, it is gone after a restart of the machine.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "compiled"))
    console = Console(stderr=True)
    begun = time.perf_counter()
    told = "compiling (minutes the first time, seconds from then on)"
    if not console.is_terminal:  # where no status is shown
        console.print(told, style="dim")
    with console.status(told):
        engine = make()
        engine.warm_up()
    if engine.compile_seconds is not None:
        console.print(f"compiled in {time.perf_counter() - begun:.0f} s", style="dim")
    return engine

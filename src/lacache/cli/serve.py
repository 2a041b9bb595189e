"""`lacache serve`: an OpenAI server, whose requests may be of any length."""

from typing import Annotated

import typer

from lacache.cli.options import (
    GeometryOption,
    ModelOption,
    OverlapOption,
    RecentOption,
    RefillOption,
    SinksOption,
    SpanOption,
    UnitOption,
    WindowLayersOption,
)
from lacache.core.errors import ConfigError


def serve(
    options: Annotated[
        list[str] | None,
        typer.Argument(
            help="After `--`: options of vLLM's own server, such as `-- --port 8001 --dtype auto`."
        ),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="Only vllm so far.")] = "vllm",
    model: ModelOption = None,
    budget: Annotated[
        int,
        typer.Option("--budget", "-b", help="Tokens that each layer keeps of each sequence."),
    ] = 512,
    policy: Annotated[str, typer.Option("--policy", help="ladder or streaming.")] = "ladder",
    span: SpanOption = None,
    overlap: OverlapOption = None,
    sinks: SinksOption = None,
    recent: RecentOption = None,
    refill: RefillOption = None,
    geometry: GeometryOption = None,
    unit: UnitOption = None,
    window_layers: WindowLayersOption = "",
) -> None:
    """Start vLLM's OpenAI server with a bounded cache: constant memory for each sequence.

    Needs vLLM, installed beforehand for this machine (docs/vllm.md). Requests may be longer than
    the model's trained context, up to `--max-model-len` (131,072 unless given after `--`).
    """
    if engine != "vllm":
        raise ConfigError(f"engine={engine!r} must be 'vllm'; try --engine vllm")
    from lacache.cli.layers import parse_layers
    from lacache.integrations.vllm.serving import start
    from lacache.integrations.vllm.settings import Settings

    given = {
        "span": span,
        "overlap": overlap,
        "sinks": sinks,
        "recent": recent,
        "refill": refill,
        "geometry": geometry,
        "unit": unit,
        "window_layers": parse_layers(window_layers) or None,
    }
    named = {name: value for name, value in given.items() if value is not None}
    start(Settings(budget, policy, named), model, options or [])

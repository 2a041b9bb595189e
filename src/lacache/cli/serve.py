"""`lacache serve`: an OpenAI server with a KV cache of constant size for each sequence."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lacache.cli.engine_setup import DEFAULT_BUDGET, CacheOptions, EngineOptions, new_engine
from lacache.cli.head_profile import ensure_profile
from lacache.cli.options import (
    DEFAULT_THREADS,
    CalibrateOption,
    DtypeOption,
    KvDtypeOption,
    ModelOption,
    WeightsOption,
)
from lacache.cli.output import format_bytes
from lacache.cli.preflight import validate_loading, validate_memory
from lacache.cli.process import heavy_imports
from lacache.cli.weights import Weights
from lacache.common.packages import require_modules
from lacache.errors import ConfigError
from lacache.policies import DEFAULT_POLICY, Full, parse_budget, parse_policy, validate_budget
from lacache.server.settings import Limits, ServerSettings, StorageSettings, validate_address

KEY_VARIABLE = "LACACHE_API_KEY"
DEFAULT_SEQUENCES = 4


def serve(
    options: Annotated[
        list[str] | None,
        typer.Argument(
            help="After `--`: options of vLLM's own server, such as `-- --max-num-seqs 64`."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="lacache, or vllm where that is installed.")
    ] = "lacache",
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help=f"Address to listen at. Others than loopback need {KEY_VARIABLE} to be set.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 is a free one.")
    ] = 8000,
    max_sequences: Annotated[
        int | None,
        typer.Option(
            "--max-sequences",
            min=1,
            help=f"Most sequences at the same time. Default: {DEFAULT_SEQUENCES}.",
            show_default=False,
        ),
    ] = None,
    waiting: Annotated[
        int | None,
        typer.Option(
            "--waiting",
            min=0,
            help="Most sequences in the queue; further requests get status 429. Default: 64.",
            show_default=False,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="A further budget that requests may choose, as the model NAME@BUDGET, with as "
            "many batch slots of its own. May be given several times.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="Size of the prefix cache, for each budget; 0 turns it off. Default: 1GiB.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Folder for sessions and for the prefix cache on disk; as private as the "
            "prompts. Default: nothing is written to disk.",
            show_default=False,
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk",
            help="Size of the prefix cache in the folder, for each budget. Default: 4GiB.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Tokens per layer (512) or bytes (64MiB), for each sequence. Default: 512.",
            show_default=False,
            rich_help_panel="Cache",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="Which tokens are kept, as for lacache generate; full is not possible. "
            f"Default: {DEFAULT_POLICY}.",
            show_default=False,
            rich_help_panel="Cache",
        ),
    ] = None,
    kv_dtype: KvDtypeOption = None,
    weights: WeightsOption = None,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the decode step first; helps few sequences."),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            help="Threads that torch computes with. Default: half of the cores.",
            show_default=False,
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    calibrate: CalibrateOption = True,
) -> None:
    """Serve OpenAI's API with a bounded KV cache: constant memory for sequences of any length.

    `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/v1/sessions`, `/health`, `/metrics`,
    and at `/` a page to chat on that shows what the cache holds. `--engine vllm` starts vLLM's
    own server with the same policies in it (docs/vllm.md).
    """
    if engine not in ("lacache", "vllm"):
        raise ConfigError(f"engine={engine!r} must be 'lacache' or 'vllm'; try --engine lacache")
    api_key = os.environ.get(KEY_VARIABLE)
    validate_address(host, api_key)
    if engine == "vllm":
        _refuse_beside_vllm(
            {
                "--kv-dtype": kv_dtype,
                "--weights": weights,
                "--compile": compile or None,
                "--threads": threads,
                "--max-sequences": max_sequences,
                "--waiting": waiting,
                "--also": also or None,
                "--memory": memory,
                "--folder": folder,
                "--disk": disk,
            }
        )
        own = {"--host": host, "--port": str(port), "--dtype": dtype}
        _start_vllm(model, budget, policy, own, options or [], api_key, calibrate=calibrate)
        return
    if options:
        raise ConfigError(f"{options[0]} after -- is an option of vLLM; give --engine vllm too")
    caches = _cache_options(budget, DEFAULT_POLICY if policy is None else policy, also or [])
    settings = ServerSettings(
        host=host,
        port=port,
        api_key=api_key,
        limits=Limits() if waiting is None else Limits(waiting=waiting),
        storage=_storage(memory, folder, disk),
    )
    threads = DEFAULT_THREADS if threads is None else threads
    validate_loading(model, dtype=dtype, threads=threads)
    parsed = Weights.parse(weights, model)
    engine_options = EngineOptions(compile=compile, kv_dtype=kv_dtype, weights=parsed.in_engine)
    max_sequences = DEFAULT_SEQUENCES if max_sequences is None else max_sequences
    for cache in caches.values():
        validate_memory(cache.budget, max_sequences)
    require_modules("fastapi", "uvicorn", "prometheus_client", why="lacache serve", extra="server")
    with heavy_imports():
        from lacache.models import load_model
        from lacache.server.start import listen, make_service, run, validate_folder

    validate_folder(folder)
    with listen(host, port) as listening:
        loaded = load_model(model, dtype=dtype, threads=threads, weights=parsed.at_loading)
        ensure_profile(loaded, [cache.policy for cache in caches.values()], calibrate=calibrate)
        engines = {
            loaded.name + suffix: new_engine(
                loaded.model, cache, engine_options, max_sequences=max_sequences
            )
            for suffix, cache in caches.items()
        }
        for name, each in engines.items():
            size, total = map(format_bytes, (each.bytes_per_sequence, each.num_bytes))
            typer.echo(
                f"{name}: at most {max_sequences} sequences, {size} each, {total} in all", err=True
            )
        with make_service(engines, loaded.model, loaded.tokenizer, settings) as service:
            at = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
            line = f"listening at {at}/v1, inspector at {at}/; Ctrl-C ends it"
            run(service, listening, api_key=api_key, on_start=lambda: typer.echo(line, err=True))


def _cache_options(budget: str | None, policy: str, also: list[str]) -> dict[str, CacheOptions]:
    """Return the options of each engine by the suffix of its model's name."""
    first = CacheOptions.parse(budget, policy)
    if isinstance(first.policy, Full):
        raise ConfigError(
            "policy='full' keeps every token, and a server's memory is fixed; try --policy ladder"
        )
    if len(set(also)) < len(also):
        raise ConfigError(f"--also {' --also '.join(also)} has a budget twice; leave one out")
    caches = {"": first}
    for other in also:
        caches[f"@{other}"] = replace(first, budget=validate_budget(first.policy, other))
    for cache in caches.values():
        if cache.budget is not None and cache.budget.share:
            raise ConfigError(
                f"budget={cache.budget} is a share of a prompt, and a server prefills many "
                "prompts; try 512 (tokens) or '64MiB' (bytes)"
            )
    return caches


def _storage(memory: str | None, folder: Path | None, disk: str | None) -> StorageSettings:
    storage = StorageSettings(
        memory_bytes=_bytes("--memory", memory, StorageSettings.memory_bytes),
        folder=folder,
        disk_bytes=_bytes("--disk", disk, StorageSettings.disk_bytes),
    )
    if disk is not None and folder is None:
        raise ConfigError(f"--disk {disk} needs a folder; give --folder too")
    return storage


def _bytes(option: str, given: str | None, default: int) -> int:
    """Parse a size such as 1GiB; 0 turns off what has the size."""
    if given is None:
        return default
    if given.strip() == "0":
        return 0
    try:
        num_bytes = parse_budget(given).num_bytes
    except ConfigError:
        num_bytes = 0
    if not num_bytes:
        raise ConfigError(f"{option}={given} must be a number of bytes; try {option} 1GiB, or 0")
    return num_bytes


def _refuse_beside_vllm(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be given with --engine vllm; leave it out, or give the "
            "option of vLLM's server after --"
        )


def _start_vllm(
    model: str | None,
    budget: str | None,
    policy: str | None,
    own: dict[str, str],
    options: list[str],
    api_key: str | None,
    *,
    calibrate: bool,
) -> None:
    from lacache.integrations.vllm.serving import start, validate_installed, validate_options
    from lacache.integrations.vllm.settings import Settings

    chosen = parse_policy(DEFAULT_POLICY if policy is None else policy)
    default = DEFAULT_BUDGET if chosen.takes_budget else None
    settings = Settings(validate_budget(chosen, default if budget is None else budget), chosen)
    validate_installed()
    validate_options(own, options)
    if chosen.needs_profile:
        with heavy_imports():
            from lacache.integrations.vllm.configuration import settings_for
            from lacache.models import load_model

        loaded = load_model(model)
        ensure_profile(loaded, [chosen], calibrate=calibrate)
        settings = settings_for(loaded.model, settings.budget, chosen)
        # The process goes on as vLLM's.
        del loaded
    start(settings, model, own, options, api_key=api_key)

"""`lacache serve`: an OpenAI server, whose requests may be of any length."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lacache.cli.cache_options import CacheOptions
from lacache.cli.loading import validate_loading, validate_memory
from lacache.cli.opening import EngineOptions, new_engine
from lacache.cli.options import (
    DEFAULT_THREADS,
    DtypeOption,
    KvDtypeOption,
    ModelOption,
    WeightsOption,
)
from lacache.common.packages import require_modules
from lacache.errors import ConfigError
from lacache.policies import DEFAULT_POLICY, Full, parse_budget, parse_policy, validate_budget
from lacache.server.settings import Limits, StorageSettings, validate_address

KEY_VARIABLE = "LACACHE_API_KEY"


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
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=1, help="Texts side by side. Default: 4.", show_default=False),
    ] = None,
    waiting: Annotated[
        int | None,
        typer.Option(
            "--waiting",
            min=0,
            help="Texts that may wait for a row. Default: 64.",
            show_default=False,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="A further budget that requests may choose, as the model NAME@BUDGET, with as "
            "many rows of its own. May be given several times.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="Bytes of texts that ended, kept so that what begins alike need not be read "
            "again, for each budget; 0 keeps none. Default: 1GiB.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Where sessions are kept, and such texts too; as private as they are. Default: "
            "nothing is written to disk.",
            show_default=False,
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk",
            help="Bytes of such texts in the folder, for each budget. Default: 4GiB.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Tokens per layer (512) or bytes (64MiB), of each text. Default: 512.",
            show_default=False,
            rich_help_panel="Cache",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="Which tokens are kept; as for lacache generate, but for full. "
            "Default: balanced; ladder with --engine vllm.",
            show_default=False,
            rich_help_panel="Cache",
        ),
    ] = None,
    kv_dtype: KvDtypeOption = None,
    weights: WeightsOption = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the step first; worth it for few rows.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Of torch. Default: half of the cores.", show_default=False),
    ] = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Serve OpenAI's API with a bounded cache: constant memory for each text, of any length.

    `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/v1/sessions`, `/health`, `/metrics`,
    and at `/` a page to chat on that shows what the cache holds. With `--engine vllm` vLLM's
    own server is started, with a ladder in it (docs/vllm.md).
    """
    if engine not in ("lacache", "vllm"):
        raise ConfigError(f"engine={engine!r} must be 'lacache' or 'vllm'; try --engine lacache")
    api_key = os.environ.get(KEY_VARIABLE)
    validate_address(host, api_key)
    if engine == "vllm":
        ours = {
            "--kv-dtype": kv_dtype,
            "--weights": weights,
            "--compile": compile or None,
            "--threads": threads,
            "--rows": rows,
            "--waiting": waiting,
            "--also": also or None,
            "--memory": memory,
            "--folder": folder,
            "--disk": disk,
        }
        named = [name for name, value in ours.items() if value is not None]
        if named:
            raise ConfigError(
                f"{', '.join(named)} cannot be given with --engine vllm; leave it out, or see what "
                "vLLM's server has for it"
            )
        own = {"--host": host, "--port": str(port), "--dtype": dtype}
        _start_vllm(model, budget, policy, own, options or [], api_key)
        return
    if options:
        raise ConfigError(f"{options[0]} stands after --, for vLLM; give --engine vllm too")
    cache_options = CacheOptions.parse(budget, DEFAULT_POLICY if policy is None else policy)
    if isinstance(cache_options.policy, Full):
        raise ConfigError(
            "policy='full' keeps every token, and a server's memory is fixed; try --policy ladder"
        )
    further = {
        other: replace(cache_options, budget=validate_budget(cache_options.policy, other))
        for other in also or ()
    }
    for given in (cache_options, *further.values()):
        if given.budget is not None and given.budget.share:
            raise ConfigError(
                f"budget={given.budget} is a share of a prompt, and a server prefills many "
                "prompts; try 512 (tokens) or '64MiB' (bytes)"
            )
    if len(set(also or ())) < len(also or ()):
        raise ConfigError(f"--also {' --also '.join(also or ())} has a budget twice; leave one out")
    storage = StorageSettings(
        memory_bytes=_bytes("--memory", memory, StorageSettings.memory_bytes),
        folder=folder,
        disk_bytes=_bytes("--disk", disk, StorageSettings.disk_bytes),
    )
    if disk is not None and folder is None:
        raise ConfigError(f"--disk {disk} needs a folder; give --folder too")
    threads = DEFAULT_THREADS if threads is None else threads
    validate_loading(model, dtype=dtype, threads=threads)
    how = EngineOptions(compile=compile, kv_dtype=kv_dtype, weights=weights)
    rows = 4 if rows is None else rows
    for given in (cache_options, *further.values()):
        validate_memory(given.budget, rows)
    require_modules("fastapi", "uvicorn", "prometheus_client", why="lacache serve", extra="server")
    from lacache.models import load_model
    from lacache.server.start import listen, make_service, run, validate_folder

    limits = Limits() if waiting is None else Limits(waiting=waiting)
    validate_folder(folder)
    with listen(host, port) as listening:
        loaded = load_model(model, dtype=dtype, threads=threads)
        engines = {loaded.name: new_engine(loaded.model, cache_options, how, 1, rows)}
        for other, options_of_other in further.items():
            engines[f"{loaded.name}@{other}"] = new_engine(
                loaded.model, options_of_other, how, 1, rows
            )
        for name, served in engines.items():
            typer.echo(
                f"{name}: {rows} sequences, {served.bytes_per_sequence / 2**20:.1f} MiB each",
                err=True,
            )
        with make_service(engines, loaded.model, loaded.tokenizer, limits, storage) as service:
            at = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
            typer.echo(
                f"listening at {at}/v1, with a page to look at {at}/; Ctrl-C ends it", err=True
            )
            run(service, listening, api_key=api_key)


def _bytes(option: str, given: str | None, default: int) -> int:
    """A size such as 1GiB; 0 is none."""
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


def _start_vllm(
    model: str | None,
    budget: str | None,
    policy: str | None,
    own: dict[str, str],
    options: list[str],
    api_key: str | None,
) -> None:
    from lacache.integrations.vllm.serving import start
    from lacache.integrations.vllm.settings import Settings

    tokens = parse_budget("512" if budget is None else budget).tokens
    if not tokens:
        raise ConfigError(
            f"budget={budget} must be a number of tokens, as vLLM shares out memory before it sees "
            "a prompt; try --budget 512"
        )
    chosen: Any = parse_policy("ladder" if policy is None else policy)
    start(Settings(tokens, chosen), model, own, options, api_key=api_key)

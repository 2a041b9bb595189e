"""`lacache demo`: prefill a long real text with several caches and compare them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lacache.cli.engine_setup import DEFAULT_BUDGET
from lacache.cli.head_profile import ensure_profile
from lacache.cli.options import (
    DEFAULT_THREADS,
    CalibrateOption,
    DtypeOption,
    ModelOption,
    ThreadsOption,
)
from lacache.cli.preflight import computing_dtype, validate_bytes, validate_loading, validate_memory
from lacache.common.validation import validate_int
from lacache.policies import DEFAULT_POLICY, parse_budget

if TYPE_CHECKING:
    from rich.console import Console

    from lacache.cache import LaCache
    from lacache.common.records import Record
    from lacache.models import LoadedModel
    from lacache.policies import Policy

_POLICIES = ("full", "streaming", DEFAULT_POLICY)
_LABELS = {
    "full": "full cache",
    "streaming": "StreamingLLM",
    "ladder": "LaCache ladder",
    "balanced": "LaCache balanced",
}
_TOKENS = 12_288
_LEFT_OUT = ("nll", "last_seen", "trace", "kept", "head_to_kept")
_PLOTS = ("ladder.png", "perplexity.png", "memory.png")


def demo(
    model: ModelOption = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="A built-in text (shakespeare:hamlet) or a text file. Default: Hamlet.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of it to prefill.")] = _TOKENS,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="What each bounded cache may hold: tokens per layer (512), a share of the text "
            "(0.05) or bytes (16MiB).",
        ),
    ] = DEFAULT_BUDGET,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="A policy to compare; repeat it for several. The last one continues the text. "
            f"Default: full, streaming and {DEFAULT_POLICY}.",
            show_default=False,
        ),
    ] = None,
    chunk_size: Annotated[
        int, typer.Option(help="Most tokens in one forward, for every policy.")
    ] = 64,
    new_tokens: Annotated[int, typer.Option(help="How many tokens to generate at the end.")] = 60,
    threads: ThreadsOption = DEFAULT_THREADS,
    dtype: DtypeOption = "auto",
    calibrate: CalibrateOption = True,
    out: Annotated[
        Path, typer.Option(help="Folder for demo.json and the plots; created if missing.")
    ] = Path("demo"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of the tables.")
    ] = False,
) -> None:
    """Prefill a long text with a full cache, StreamingLLM and LaCache, and compare them.

    The bounded caches get the same budget, and all prefill at most --chunk-size tokens at once.
    Prints perplexity by position, bytes and speed, writes ladder.png, perplexity.png, memory.png
    and demo.json, and then continues the text from what the last cache holds.
    """
    # Everything that can be wrong is checked before the minutes of prefill.
    validate_int("tokens", tokens, 2)
    validate_int("new_tokens", new_tokens, 0)
    validate_int("chunk_size", chunk_size, 1)
    validate_loading(model, dtype=dtype, threads=threads)
    parsed = parse_budget(budget)
    validate_memory(parsed)

    from rich.console import Console

    from lacache.common.records import environment, read_record, validate_writable, write_record
    from lacache.corpora import DEFAULT_DOCUMENT
    from lacache.evals.compare import compare, conclusions, trace_record
    from lacache.evals.plots import (
        plot_ladder,
        plot_memory,
        plot_perplexity,
        require_matplotlib,
    )
    from lacache.evals.policies import open_cache, parse_eval_policy, smallest_capacity
    from lacache.evals.runner import EvalRunner
    from lacache.evals.runs import RunSpec
    from lacache.evals.tasks.ppl import Perplexity
    from lacache.models import load_model
    from lacache.models.model_info import model_info

    chosen = list(dict.fromkeys(map(parse_eval_policy, policies or _POLICIES)))
    require_matplotlib()
    task = Perplexity(DEFAULT_DOCUMENT if text is None else text)
    task.validate()
    validate_writable(out)
    loaded = load_model(model, dtype=computing_dtype(dtype), threads=threads)
    # One token more than is prefilled, to continue from.
    token_ids = task.token_ids(loaded.tokenizer, length=tokens + 1)
    ensure_profile(loaded, chosen, calibrate=calibrate)
    info = model_info(loaded.model)
    capacity = parsed.capacity(
        bytes_per_token=info.bytes_per_token,
        prompt_tokens=tokens,
        smallest=smallest_capacity(loaded.model, chosen),
    )
    validate_bytes(budget, capacity * info.bytes_per_token)
    specs = [RunSpec(task, policy, tokens, str(capacity)) for policy in chosen]
    for policy in chosen:
        open_cache(loaded.model, policy, capacity)

    progress_console = Console(stderr=True)
    progress_console.print(
        f"Prefilling {tokens:,} tokens of {task.text} with {loaded.name} and "
        f"{len(specs)} {'policies' if len(specs) > 1 else 'policy'}: "
        f"{capacity:,} tokens per layer, no limit for the full cache, "
        f"at most {chunk_size} tokens at once, {threads} thread{'s' * (threads > 1)}.",
        highlight=False,
    )
    runner = EvalRunner(loaded, chunk_size=chunk_size)
    runs: list[Record] = []
    cache: Any = None
    with _progress(progress_console, tokens) as start:
        for spec, label in zip(specs, _labels(chosen), strict=True):
            # The one before is freed first: a full cache is large.
            cache = monitor = None
            run, monitor = runner.run_perplexity(spec, start(label))
            cache = monitor.cache
            runs.append({**run, **trace_record(label, monitor, info.growing)})

    record: Record = {
        "kind": "demo",
        "conclusions": conclusions(runs),
        "table": [asdict(row) for row in compare(runs)],
        "environment": environment(),
        "runs": runs,
    }
    console = Console(highlight=False)
    if not as_json:
        # Before anything is written: a full disk must not cost the figures.
        _show(console, record)
    write_record(out / "demo.json", record)
    runs = read_record(out / "demo.json")["runs"]
    plot_ladder(runs[-1], out / "ladder.png")
    plot_perplexity(runs, out / "perplexity.png")
    plot_memory(runs, out / "memory.png")
    if not as_json:
        written = ", ".join(str(out / name) for name in ("demo.json", *_PLOTS))
        console.print(f"\nWrote {written}.\n", soft_wrap=True)
    continuation = _continue(
        None if as_json else console, loaded, cache, runs[-1]["label"], token_ids, new_tokens
    )
    if as_json:
        short = [{k: v for k, v in run.items() if k not in _LEFT_OUT} for run in runs]
        typer.echo(json.dumps({**record, "runs": short, "continuation": continuation}))


def _labels(policies: Sequence[Policy]) -> list[str]:
    """Return a name of its own for a policy that is alone of its name, else the policy's text."""
    names = [str(policy).partition(":")[0] for policy in policies]
    return [
        _LABELS.get(name, str(policy)) if names.count(name) == 1 else str(policy)
        for name, policy in zip(names, policies, strict=True)
    ]


@contextmanager
def _progress(console: Console, tokens: int) -> Iterator[Callable[[str], Callable[[int], None]]]:
    """Yield a function that starts a progress bar and returns how to advance it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def start(label: str) -> Callable[[int], None]:
            task = progress.add_task(label, total=tokens)
            return lambda num_tokens: progress.advance(task, num_tokens)

        yield start


def _show(console: Console, record: Record) -> None:
    from rich import box
    from rich.table import Table

    from lacache.evals.compare import TIE_IN_SPEED

    runs: Sequence[Record] = record["runs"]
    first = runs[0]
    console.print(
        f"\n{first['length']:,} tokens of {first['task']['text']}, "
        f"{first['model']['name']} in {first['model']['dtype']}",
        style="bold",
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run["label"], justify="right", no_wrap=True)
    group = None
    for row in record["table"]:
        if row["group"] != group:
            group = row["group"]
            table.add_row(f"[bold]{group}[/bold]")
        numbers = (
            f"[bold]{number} *[/bold]" if run["label"] in row["best"] else f"{number}  "
            for number, run in zip(row["numbers"], runs, strict=True)
        )
        table.add_row(f"  {row['name']}", *numbers)
    console.print(table)
    console.print(
        f"* best of its row; equal numbers tie, and so do speeds within {TIE_IN_SPEED:.0%}"
    )
    for run in runs:
        if run["capacity"]:
            settings = {"capacity": run["capacity"], **run["policy"]}
            shown = ", ".join(
                f"{name} {value}"
                for name, value in settings.items()
                if name != "name" and value is not None and value != []
            )
            console.print(f"{run['label']}: {shown}", soft_wrap=True)
    console.print()
    for sentence in record["conclusions"]:
        console.print(f"- {sentence}", markup=False)


def _continue(
    console: Console | None,
    loaded: LoadedModel,
    cache: LaCache,
    label: str,
    token_ids: list[int],
    new_tokens: int,
) -> dict[str, Any]:
    """Stream a continuation of the text from what the cache holds."""
    from lacache.engine.cache_stream import CacheGenerator
    from lacache.engine.detokenizer import Detokenizer
    from lacache.engine.sampling import Sampling

    before = loaded.tokenizer.decode(token_ids[-24:])
    if console is not None:
        held = cache.report()
        alike = held.num_cached == held.most_cached
        where = "in each layer" if alike else "in a KV head on average"
        console.print(
            f"{label} continues from what it holds, {held.num_cached:,} tokens {where} and "
            f"{held.coverage:,} different ones in all (temperature 0.7):\n"
        )
        console.print(f"... {before}", style="dim", markup=False, end="")
    generator = CacheGenerator(loaded.model, cache, Sampling(temperature=0.7, top_p=0.9, seed=0))
    decoded = Detokenizer(loaded.tokenizer)
    parts = []

    def emit(part: str, end: str = "") -> None:
        parts.append(part)
        if console is not None:
            console.print(part, markup=False, end=end, soft_wrap=True)

    for token in generator.generate(token_ids[-1:], max_new_tokens=new_tokens):
        emit(decoded.push(token))
    emit(decoded.flush(), end="\n")
    return {"before": before, "text": "".join(parts)}

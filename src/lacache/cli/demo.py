"""`lacache demo`: read a long real text with three caches and compare them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lacache.cli.computing import computing_dtype
from lacache.cli.loading import validate_bytes, validate_loading, validate_memory
from lacache.cli.options import (
    DEFAULT_THREADS,
    DtypeOption,
    GeometryOption,
    ModelOption,
    OverlapOption,
    RecentOption,
    SinksOption,
    SpanOption,
    ThreadsOption,
    UnitOption,
)
from lacache.cli.policy import make_policy
from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.policies.budget import parse_budget
from lacache.policies.schedule import Policy

if TYPE_CHECKING:
    from rich.console import Console

    from lacache.common.records import Record
    from lacache.engine.writer import Writer
    from lacache.models import LoadedModel

_LABELS = {"full": "full cache", "streaming": "StreamingLLM", "ladder": "LaCache"}
_TOKENS = 12_288
_LEFT_OUT = ("nll", "memory", "kept", "layer_to_kept")


def demo(
    model: ModelOption = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="A built-in text (shakespeare:hamlet) or a text file. Default: Hamlet.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of it to read.")] = _TOKENS,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="What both bounded caches may hold: tokens per layer (512), a share of the text "
            "(0.05) or bytes (16MiB).",
        ),
    ] = "512",
    evict_batch: Annotated[
        int,
        typer.Option(
            help="Slots that one compaction should free, in both bounded caches. Also the most "
            "tokens that any of the three reads at once."
        ),
    ] = 64,
    sinks: SinksOption = None,
    span: SpanOption = None,
    overlap: OverlapOption = None,
    recent: RecentOption = None,
    geometry: GeometryOption = None,
    unit: UnitOption = None,
    new_tokens: Annotated[int, typer.Option(help="How many tokens to write at the end.")] = 60,
    threads: ThreadsOption = DEFAULT_THREADS,
    dtype: DtypeOption = "auto",
    out: Annotated[
        Path, typer.Option(help="Folder for demo.json and the plots; created if missing.")
    ] = Path("demo"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of the tables.")
    ] = False,
) -> None:
    """Read a long text with a full cache, StreamingLLM and LaCache, and say which won what.

    The bounded caches get the same budget and evict_batch, and none of the three prefills
    more tokens at once than that. Prints perplexity by position, bytes and speed, writes
    ladder.png, perplexity.png, memory.png and demo.json, and then goes on from what LaCache holds.
    """
    # Everything that can be wrong is checked before the minutes of reading.
    validate_int("tokens", tokens, 2)
    validate_int("new_tokens", new_tokens, 0)
    validate_loading(model, dtype=dtype, threads=threads)
    parsed = parse_budget(budget)
    validate_memory(budget)

    from rich.console import Console

    from lacache.cache.static.shape import bytes_per_token
    from lacache.common.records import environment, read_record, validate_writable, write_record
    from lacache.corpora import DEFAULT_TEXT, load_text
    from lacache.engine.sampling import Sampling
    from lacache.evals.compare import compare, conclusions
    from lacache.evals.plots import (
        plot_ladder,
        plot_memory,
        plot_perplexity,
        require_matplotlib,
    )
    from lacache.evals.reading import model_record, read
    from lacache.models import load_model
    from lacache.models.model_info import model_info

    require_matplotlib()
    source = load_text(DEFAULT_TEXT if text is None else text)
    loaded = load_model(model, dtype=computing_dtype(dtype), threads=threads)
    token_ids = _first_tokens(loaded, source.content, source.name, tokens + 1)

    info = model_info(loaded.model)
    num_layers = len(info.growing)

    def policies(capacity: int) -> dict[str, Policy]:
        shared = {"capacity": capacity, "sinks": sinks, "evict_batch": evict_batch}
        ladder = {"span": span, "overlap": overlap, "recent": recent, "geometry": geometry}
        return {
            "full": make_policy("full", num_layers),
            "streaming": make_policy("streaming", num_layers, **shared),
            "ladder": make_policy("ladder", num_layers, **shared, **ladder, unit=unit),
        }

    largest = policies(1 << 40)
    capacity = parsed.capacity(
        bytes_per_token=bytes_per_token(info),
        prompt_tokens=tokens,
        smallest=max(
            policy.smallest_capacity(num_layers)
            for name, policy in largest.items()
            if name != "full"
        ),
    )
    validate_bytes(budget, capacity * bytes_per_token(info))
    chosen = policies(capacity)
    for policy in chosen.values():
        policy.bind(num_layers)
    validate_writable(out)

    progress_console = Console(stderr=True)
    progress_console.print(
        f"Reading {tokens:,} tokens of {source.name} with {loaded.name} three times: "
        f"{capacity:,} tokens per layer for StreamingLLM and LaCache, no limit for the full "
        f"cache, at most {evict_batch} tokens at once, {threads} thread{'s' * (threads > 1)}.",
        highlight=False,
    )
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=0)
    about = model_record(loaded.model, loaded.name)
    readings: list[Record] = []
    writer: Writer | None = None
    with _progress(progress_console, tokens) as start:
        for name, policy in chosen.items():
            # The one before is let go first: a full cache is large.
            writer = None
            reading, writer = read(
                loaded.model,
                token_ids[:tokens],
                policy,
                chunk=evict_batch,
                sampling=sampling,
                on_progress=start(_LABELS[name]),
            )
            readings.append(reading.record(label=_LABELS[name], model=about, text_name=source.name))

    said = conclusions(readings)
    record: Record = {
        "kind": "demo",
        "conclusions": said,
        "table": [asdict(row) for row in compare(readings)],
        "environment": environment(),
        "readings": readings,
    }
    console = Console(highlight=False)
    if not as_json:
        # Before anything is written: a full disk must not cost the figures.
        _show(console, record)
    write_record(out / "demo.json", record)
    readings = read_record(out / "demo.json")["readings"]
    plot_ladder(readings[-1], out / "ladder.png")
    plot_perplexity(readings, out / "perplexity.png")
    plot_memory(readings, out / "memory.png")

    if not as_json:
        written = ", ".join(
            str(out / name) for name in ("demo.json", "ladder.png", "perplexity.png", "memory.png")
        )
        console.print(f"\nWrote {written}.\n", soft_wrap=True)
    assert writer is not None
    continuation = _go_on(console, loaded, writer, token_ids, new_tokens, quiet=as_json)
    if as_json:
        short = [{k: v for k, v in r.items() if k not in _LEFT_OUT} for r in readings]
        typer.echo(json.dumps({**record, "readings": short, "continuation": continuation}))


def _first_tokens(loaded: LoadedModel, content: str, name: str, tokens: int) -> list[int]:
    """The first `tokens` tokens of a text; the last of them starts the continuation."""
    # Longer than a tokenizer's own limit is what this is about, so it need not warn.
    token_ids: list[int] = loaded.tokenizer(content, verbose=False)["input_ids"]
    if len(token_ids) < tokens:
        remedy = f"try --tokens {len(token_ids) - 1}" if len(token_ids) > 2 else "try a longer text"
        raise InputError(
            f"text {name} has {len(token_ids):,} tokens, and {tokens:,} are needed (--tokens and "
            f"one to go on from); {remedy}"
        )
    return token_ids[:tokens]


@contextmanager
def _progress(console: Console, tokens: int) -> Iterator[Callable[[str], Callable[[int], None]]]:
    """Progress bars; the function given starts one more and returns how to move it on."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
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

    readings: Sequence[Record] = record["readings"]
    first = readings[0]
    console.print(
        f"\n{first['tokens']:,} tokens of {first['text']['name']}, "
        f"{first['model']['name']} in {first['model']['dtype']}",
        style="bold",
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for reading in readings:
        table.add_column(reading["label"], justify="right", no_wrap=True)
    group = None
    for row in record["table"]:
        if row["group"] != group:
            group = row["group"]
            table.add_row(f"[bold]{group}[/bold]")
        numbers = (
            f"[bold]{number} *[/bold]" if reading["label"] in row["best"] else f"{number}  "
            for number, reading in zip(row["numbers"], readings, strict=True)
        )
        table.add_row(f"  {row['name']}", *numbers)
    console.print(table)
    console.print(
        f"* best of its row; equal numbers tie, and so do speeds within {TIE_IN_SPEED:.0%}"
    )
    for reading in readings[1:]:
        settings = ", ".join(
            f"{name} {value}"
            for name, value in reading["policy"].items()
            if name != "name" and value is not None and value != ()
        )
        console.print(f"{reading['label']}: {settings}", soft_wrap=True)
    console.print()
    for sentence in record["conclusions"]:
        console.print(f"- {sentence}", markup=False)


def _go_on(
    console: Console,
    loaded: LoadedModel,
    writer: Writer,
    token_ids: list[int],
    new_tokens: int,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Stream a continuation of the text from what the cache holds."""
    from lacache.engine.text import TextStream

    held = writer.report()
    before = loaded.tokenizer.decode(token_ids[-24:])
    if not quiet:
        console.print(
            f"LaCache goes on from what it holds, {held.num_cached:,} tokens in each layer and "
            f"{held.coverage:,} different ones in all (temperature 0.7):\n"
        )
        console.print(f"... {before}", style="dim", markup=False, end="")
    pieces = TextStream(loaded.tokenizer)
    written = []
    for token in writer.write(token_ids[-1:], max_new_tokens=new_tokens):
        written.append(pieces.push(token))
        if not quiet:
            console.print(written[-1], markup=False, end="", soft_wrap=True)
    written.append(pieces.flush())
    if not quiet:
        console.print(written[-1], markup=False, soft_wrap=True)
    return {"before": before, "text": "".join(written)}

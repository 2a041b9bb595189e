"""`lacache calibrate`: which layers and KV heads of a model need a long history."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lacache.cli.computing import computing_dtype
from lacache.cli.loading import validate_loading
from lacache.cli.options import DEFAULT_THREADS, DtypeOption, ModelOption, ThreadsOption
from lacache.common.validation import validate_int
from lacache.policies.head_profile import HeadProfile, profile_json, read_profile

if TYPE_CHECKING:
    from rich.console import Console


def calibrate(
    model: ModelOption = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="A built-in text or a text file to hide the probes in. Default: Hamlet.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        int, typer.Option(help="Newest tokens that a head without history sees.")
    ] = 64,
    sinks: Annotated[int, typer.Option(help="First tokens that it sees besides.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens of a probe.")] = 600,
    probes: Annotated[int, typer.Option(help="Probes of each of the five kinds.")] = 2,
    seed: Annotated[int, typer.Option(help="Of what the probes draw by chance.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The profile to write. Default: the user's cache, where it is found again.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write a heat map, as a PNG file.")
    ] = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Find which layers and KV heads of a model need a long history, without gradients.

    Measures how much worse answers become when heads see only a short window: first one head at a
    time, then more and more of them. What was measured is kept after an interruption, and the
    same command goes on from there.
    """
    validate_loading(model, dtype=dtype, threads=threads)
    validate_int("probes", probes, 1, 1000)

    from rich.console import Console

    from lacache.calibration import store
    from lacache.calibration.calibrate import Settings
    from lacache.calibration.calibrate import calibrate as measure
    from lacache.common.records import validate_replaceable
    from lacache.corpora import DEFAULT_TEXT, load_text
    from lacache.evals.plots.drawing import require_matplotlib, validate_png
    from lacache.evals.plots.profile import plot_profile
    from lacache.models import load_model
    from lacache.models.fingerprint import fingerprint
    from lacache.models.model_info import model_info

    settings = Settings(window=window, sinks=sinks, length=length, per_kind=probes, seed=seed)
    if plot is not None:
        validate_png(plot)
        require_matplotlib()
        validate_replaceable(plot)
    source = load_text(DEFAULT_TEXT if text is None else text)
    loaded = load_model(model, dtype=computing_dtype(dtype), threads=threads)
    of_model = fingerprint(loaded.model)
    path = out or store.profile_path(of_model)
    validate_replaceable(path)
    steps = settings.num_steps(model_info(loaded.model).num_heads)
    console = Console(stderr=True)
    console.print(f"Calibrating {loaded.name} ({of_model}) with {source.name}", highlight=False)
    with _progress(console, steps) as on_step:
        profile = measure(
            loaded.model,
            loaded.tokenizer,
            source.content,
            name=loaded.name,
            journal=store.journal_path(of_model),
            settings=settings,
            on_step=on_step,
        )
    store.save_profile(profile, path)
    store.journal_path(of_model).unlink(missing_ok=True)
    if as_json:
        typer.echo(json.dumps(profile_json(profile)))
    else:
        _show(profile)
    typer.echo(f"wrote {path}", err=True)
    if plot is not None:
        plot_profile(read_profile(path), plot)
        typer.echo(f"wrote {plot}", err=True)


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("probing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("probing", total=steps)
        yield lambda count: progress.advance(task, count)


def _show(profile: HeadProfile) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    total = len(profile.order)
    console.print(
        f"\n{profile.model}: {profile.num_layers} layers, {total} KV heads; loss of the answers, "
        "0 as with a full cache, 1 as with windows everywhere\n",
        style="bold",
    )
    needy = Table(box=box.SIMPLE_HEAD, title="Neediest KV heads", title_justify="left")
    for name in ("layer", "head", "loss if this one alone has a window"):
        needy.add_column(name, justify="right")
    for layer, head in profile.order[:10]:
        needy.add_row(str(layer), str(head), f"{profile.need[layer][head]:.3f}")
    console.print(needy)
    left = Table(
        box=box.SIMPLE_HEAD,
        title=f"The neediest keep everything, the others {profile.window} tokens",
        title_justify="left",
    )
    for name in ("heads", "share of heads", "loss left"):
        left.add_column(name, justify="right")
    for count, loss in profile.left:
        left.add_row(str(count), f"{count / total:.0%}", f"{loss:.3f}")
    console.print(left)

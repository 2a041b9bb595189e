"""`lacache calibrate`: find the retrieval heads of a model and write its head profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lacache.cli.options import DEFAULT_THREADS, DtypeOption, ModelOption, ThreadsOption
from lacache.cli.preflight import computing_dtype, validate_loading
from lacache.common.validation import validate_int
from lacache.policies.head_profile import HeadProfile, profile_json


def calibrate(
    model: ModelOption = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="A built-in corpus or a text file to hide the probes in. Default: sampled from "
            "the model.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="Recent tokens that a streaming head sees.")] = 64,
    sinks: Annotated[int, typer.Option(help="Attention sinks that it sees besides.")] = 4,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a probe. Default: 400, or more where the tokenizer needs more.",
            show_default=False,
        ),
    ] = None,
    probes: Annotated[int, typer.Option(help="Number of probes of each kind.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the random parts of the probes.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The profile to write; creates its folder. Default: the folder in which profiles "
            "are looked up.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Write a heat map, as a PNG file; creates its folder."),
    ] = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Find the retrieval heads of a model, from a few gradients, even if they are known.

    Measures what it costs in answers when heads see only a short window, all at once, and how much
    of that is due to each head. After an interruption the same command resumes.
    """
    validate_loading(model, dtype=dtype, threads=threads)
    validate_int("probes", probes, 1, 1000)

    from lacache.calibration.calibrate import calibrate as measure
    from lacache.calibration.measure import Settings
    from lacache.calibration.store import profile_path
    from lacache.common.records import validate_replaceable
    from lacache.corpora import load_document
    from lacache.evals.plots.profile import plot_profile
    from lacache.evals.plots.style import require_matplotlib, validate_png
    from lacache.models import load_model

    settings = Settings(window=window, sinks=sinks, length=length, per_kind=probes, seed=seed)
    if plot is not None:
        validate_png(plot)
        require_matplotlib()
        validate_replaceable(plot)
    if out is not None:
        validate_replaceable(out)
    haystack = None if text is None else load_document(text).content
    loaded = load_model(model, dtype=computing_dtype(dtype), threads=threads)
    profile = measure(
        loaded.model,
        loaded.tokenizer,
        haystack=haystack,
        settings=settings,
        name=loaded.name,
        path=out,
        again=True,
    )
    if as_json:
        typer.echo(json.dumps(profile_json(profile)))
    else:
        _show(profile)
    used = profile_path(profile.fingerprint)
    note = "" if out is None else f"; to use it, copy it to {used}"
    typer.echo(f"wrote {out or used}{note}", err=True)
    if plot is not None:
        plot_profile(profile, plot)
        typer.echo(f"wrote {plot}", err=True)


def _show(profile: HeadProfile) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    total = len(profile.order)
    console.print(
        f"\n{profile.model}: {profile.num_layers} layers, {total} KV heads; loss of the answers, "
        "0 as with a full cache, 1 as with windows in all heads\n",
        style="bold",
    )
    heads = Table(box=box.SIMPLE_HEAD, title="Most important KV heads", title_justify="left")
    for name in ("layer", "head", "share of the loss"):
        heads.add_column(name, justify="right")
    for layer, head in profile.order[:10]:
        heads.add_row(str(layer), str(head), f"{profile.importance[layer][head]:.3f}")
    console.print(heads)
    losses = Table(
        box=box.SIMPLE_HEAD,
        title=f"The most important keep all tokens, the others {profile.window}",
        title_justify="left",
    )
    for name in ("heads", "share of heads", "loss left"):
        losses.add_column(name, justify="right")
    for count, loss in profile.loss_left:
        losses.add_row(str(count), f"{count / total:.0%}", f"{loss:.3f}")
    console.print(losses)

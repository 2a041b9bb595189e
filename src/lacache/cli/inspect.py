"""`lacache inspect`: what would be kept, without a model."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lacache.cli.groups_record import describe_heads, groups_record
from lacache.cli.ladder_record import ladder_record
from lacache.cli.layers import parse_layers
from lacache.cli.options import (
    GeometryOption,
    OverlapOption,
    PlanOption,
    PolicyOption,
    RecentOption,
    SinksOption,
    SpanOption,
    UnitOption,
    WindowLayersOption,
)
from lacache.cli.policy import make_policy
from lacache.core.checks import check_int
from lacache.core.errors import ConfigError
from lacache.core.kept import kept_after
from lacache.core.plan_record import load_plan
from lacache.core.schedule import Policy


def inspect(
    layers: Annotated[int, typer.Option("--layers", help="Layers of the model.")],
    seen: Annotated[int, typer.Option("--seen", help="How many tokens were read.")],
    capacity: Annotated[
        int | None,
        typer.Option(
            "--capacity",
            help="Most tokens that a layer holds, the newest included. Needed but for full.",
        ),
    ] = None,
    policy: PolicyOption = None,
    span: SpanOption = None,
    overlap: OverlapOption = None,
    sinks: SinksOption = None,
    recent: RecentOption = None,
    refill: Annotated[
        int | None,
        typer.Option(
            "--refill",
            help="Slots that one compaction frees. Default: 1.",
            show_default=False,
            rich_help_panel="Cache",
        ),
    ] = None,
    geometry: GeometryOption = None,
    unit: UnitOption = None,
    window_layers: WindowLayersOption = "",
    before_compaction: Annotated[
        bool,
        typer.Option(
            "--before-compaction",
            help="Show the state right after the last token: if the cache is full then, the "
            "compaction that the next token causes has not run.",
        ),
    ] = False,
    plan: PlanOption = None,
    heads: Annotated[
        int,
        typer.Option("--heads", help="KV heads of each layer, for a plan that tells them apart."),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Write a picture, layers by tokens, as a PNG file."),
    ] = None,
) -> None:
    """Show which tokens each layer holds after --seen tokens.

    These are the tokens that the next token finds: if the cache is full, the compaction that
    comes before it has run. Tokens are numbered from 0. Needs no model.
    """
    check_int("layers", layers, 1)
    check_int("seen", seen, 0)
    check_int("heads", heads, 1)
    options = {
        "capacity": capacity,
        "span": span,
        "overlap": overlap,
        "sinks": sinks,
        "recent": recent,
        "refill": refill,
        "geometry": geometry,
        "unit": unit,
        "window_layers": parse_layers(window_layers) or None,
    }
    show: Callable[[], None]
    if plan is not None:
        given = [name for name, value in options.items() if value is not None]
        if given or policy is not None:
            raise ConfigError(
                f"{', '.join(given or ['policy'])} cannot be given beside --plan; set it in {plan}"
            )
        num_heads = [heads] * layers
        record = groups_record(load_plan(plan), num_heads, seen, settled=not before_compaction)
        show = partial(_show_groups, record, num_heads, before_compaction=before_compaction)
    else:
        config = make_policy(policy or "ladder", layers, **options)
        kept = kept_after(config.bind(layers), seen)
        is_due = kept.schedule.is_full(kept.state)
        if not before_compaction:
            kept.settle()
        record = ladder_record(kept) | {"compaction_due": is_due}
        show = partial(_show, config, record, before_compaction=before_compaction)
    if plot is not None:
        from lacache.evals.plots import plot_ladder

        plot_ladder(record, plot)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        show()
    if plot is not None:
        typer.echo(f"wrote {plot}", err=True)


def _show_groups(record: dict[str, Any], num_heads: list[int], *, before_compaction: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lacache.cli.ranges import describe

    console = Console(highlight=False)
    console.print(
        f"{record['num_seen']:,} tokens seen, {record['mean_cached']:,.1f} held by a KV head on "
        f"average and {record['coverage']:,} by some head"
    )
    when = "right after the last token" if before_compaction else "as the next token finds them"
    console.print(f"Tokens held {when}:\n")
    table = Table(
        "group", "capacity", "layers, or layer.KV head", "tokens", "which", box=box.SIMPLE_HEAD
    )
    for number, group in enumerate(record["groups"]):
        pairs = [(int(layer), head) for layer, of in group["heads"].items() for head in of]
        lists = {record["head_to_kept"][layer][head] for layer, head in pairs}
        capacity = "-" if group["capacity"] is None else f"{group['capacity']:,}"
        for which in sorted(lists):
            tokens = record["kept"][which]
            having = [pair for pair in pairs if record["head_to_kept"][pair[0]][pair[1]] == which]
            table.add_row(
                str(number),
                capacity,
                describe_heads(having, num_heads),
                f"{len(tokens):,}",
                describe(tokens),
            )
    console.print(table)


def _show(config: Policy, record: dict[str, Any], *, before_compaction: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lacache.cli.ranges import describe

    console = Console(highlight=False)
    console.print(f"{config}", markup=False, soft_wrap=True)
    if not record["compaction_due"]:
        when = "right after the last token; no compaction is due"
    elif before_compaction:
        when = "right after the last token, before the compaction that is due"
    else:
        when = "as the next token finds them, after the compaction that was due"
    console.print(
        f"{record['num_seen']:,} tokens seen, {record['num_cached']:,} held by each layer "
        f"and {record['coverage']:,} by some layer, cursor {record['cursor']}"
    )
    console.print(f"Tokens held {when}:\n")
    table = Table("layers", "tokens", "which", box=box.SIMPLE_HEAD)
    for number, tokens in enumerate(record["kept"]):
        having = [i for i, held in enumerate(record["layer_to_kept"]) if held == number]
        table.add_row(describe(having), f"{len(tokens):,}", describe(tokens))
    console.print(table)

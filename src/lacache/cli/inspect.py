"""`lacache inspect`: what would be kept, without a model."""

import json
from collections.abc import Callable, Sequence
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
from lacache.cli.policy import make_policy, make_preset, preset_note
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies.groups import Groups, Member
from lacache.policies.kept import kept_after
from lacache.policies.plan_record import load_plan
from lacache.policies.retrieval_heads import RetrievalHeads
from lacache.policies.schedule import Plan, Policy, Schedule

_MOST_HELD = 10_000_000


def inspect(
    layers: Annotated[int, typer.Option("--layers", help="Layers of the model.")],
    seen: Annotated[int, typer.Option("--seen", help="How many tokens were read.")],
    capacity: Annotated[
        int | None,
        typer.Option(
            "--capacity",
            "--budget",
            "-b",
            help="Most tokens that a layer holds, the newest included; of a plan with groups, on "
            "average. Needed but for full.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="balanced, local, global or paper, for a model without a profile.",
            show_default=False,
            rich_help_panel="Cache",
        ),
    ] = None,
    policy: PolicyOption = None,
    span: SpanOption = None,
    overlap: OverlapOption = None,
    sinks: SinksOption = None,
    recent: RecentOption = None,
    evict_batch: Annotated[
        int | None,
        typer.Option(
            "--evict_batch",
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
        int | None,
        typer.Option(
            "--heads",
            help="KV heads of each layer, for a plan that tells them apart. Default: 1.",
            show_default=False,
        ),
    ] = None,
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
    # Far beyond any model; a typing slip must not fill the memory.
    validate_int("layers", layers, 1, 1000)
    validate_int("seen", seen, 0)
    if heads is not None:
        validate_int("heads", heads, 1, 256)
    options: dict[str, Any] = {
        "capacity": capacity,
        "span": span,
        "overlap": overlap,
        "sinks": sinks,
        "recent": recent,
        "evict_batch": evict_batch,
        "geometry": geometry,
        "unit": unit,
        "window_layers": parse_layers(window_layers) or None,
    }
    chosen: Plan
    note = ""
    if plan is not None:
        _refuse_beside(f"--plan; set it in {plan}", preset=preset, policy=policy, **options)
        chosen = load_plan(plan)
        heads = _heads_for(chosen, heads, plan)
    elif preset is not None:
        others = {k: v for k, v in options.items() if k not in ("capacity", "sinks")}
        _refuse_beside(f"--preset {preset}; leave one of them out", policy=policy, **others)
        chosen = make_preset(preset, [heads or 1] * layers, capacity=capacity, sinks=sinks)
        note = preset_note(preset)
    else:
        chosen = make_policy("ladder" if policy is None else policy, layers, **options)
    show: Callable[[], None]
    if plan is None and isinstance(chosen, Policy):
        schedule = chosen.bind(layers)
        _validate_size([schedule], seen)
        kept = kept_after(schedule, seen)
        is_due = kept.schedule.is_full(kept.state)
        if not before_compaction:
            kept.settle()
        record = ladder_record(kept) | {"compaction_due": is_due}
        show = partial(_show, chosen, record, before_compaction=before_compaction)
    else:
        num_heads = [heads or 1] * layers
        _validate_size([group.schedule for group in chosen.bind_groups(num_heads)], seen)
        record = groups_record(chosen, num_heads, seen, settled=not before_compaction)
        show = partial(_show_groups, record, num_heads, before_compaction=before_compaction)
    if plot is not None:
        from lacache.evals.plots import plot_ladder

        plot_ladder(record, plot)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        if note:
            typer.echo(note)
        show()
    if plot is not None:
        typer.echo(f"wrote {plot}", err=True)


def _validate_size(schedules: Sequence[Schedule], seen: int) -> None:
    """Refuse more token numbers than anybody would read."""
    held = sum(min(seen, s.capacity) * len(set(s.patterns)) for s in schedules)
    if held > _MOST_HELD:
        raise ConfigError(
            f"seen={seen} makes {held:,} tokens that layers hold, and at most {_MOST_HELD:,} are "
            "shown; try a smaller --capacity or --seen"
        )


def _refuse_beside(what: str, **options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)} cannot be given beside {what}")


def _heads_for(plan: Plan, heads: int | None, path: Path) -> int:
    """The KV heads of each layer, which a plan that tells them apart does not say."""
    told = [member for member in _members(plan) if isinstance(member, tuple)]
    if heads is None and told:
        raise ConfigError(
            f"--heads is not given, and {path} tells KV heads apart, such as number {told[0][1]} "
            f"of layer {told[0][0]}; say how many each layer of the model has: --heads "
            f"{1 + max(head for _, head in told)} or more"
        )
    return heads or 1


def _members(plan: Plan) -> Sequence[Member]:
    if isinstance(plan, RetrievalHeads):
        return [member for members in (plan.history, *plan.tiers) for member in members]
    if isinstance(plan, Groups):
        return [member for group in plan.groups for member in group.members]
    return ()


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
        if group["final_capacity"] != group["capacity"]:
            capacity += f", later {group['final_capacity']:,}"
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

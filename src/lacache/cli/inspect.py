"""`lacache inspect`: what would be kept, without a model."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lacache.cli.inspect_records import format_heads, groups_record, ladder_record
from lacache.cli.options import PolicyOption
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies import (
    DEFAULT_POLICY,
    BoundPolicy,
    Groups,
    ModelShape,
    Policy,
    RetrievalHeads,
    Schedule,
    bind_policy,
    kept_after,
    parse_budget,
    parse_policy,
)
from lacache.policies.members import Member

_MOST_HELD = 10_000_000


def inspect(
    layers: Annotated[int, typer.Option("--layers", help="Layers of the model.")],
    seen: Annotated[int, typer.Option("--seen", help="How many tokens were prefilled.")],
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Most tokens that a layer holds, the newest included, averaged over KV heads. "
            "Needed but for full and groups.",
            show_default=False,
        ),
    ] = None,
    policy: PolicyOption = DEFAULT_POLICY,
    before_compaction: Annotated[
        bool,
        typer.Option(
            "--before-compaction",
            help="Show the state right after the last token: if the cache is full then, the "
            "compaction that the next token causes has not run.",
        ),
    ] = False,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads",
            help="KV heads of each layer, for a policy that names single heads. Default: 1.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Write a picture, layers by tokens, as a PNG file; creates its folder."
        ),
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
    parsed = parse_policy(policy)
    heads = _heads_for(parsed, heads)
    if budget is None and parsed.takes_budget:
        raise ConfigError(
            "no budget was given; try budget=512 (tokens, as there is no model and no prompt)"
        )
    if budget is not None and not parse_budget(budget).tokens:
        raise ConfigError(
            f"budget={budget} must be a number of tokens, as there is no model and no prompt; try "
            "--budget 512"
        )
    bound = bind_policy(
        parsed, budget, ModelShape((heads,) * layers), bytes_per_token=1, prompt_tokens=1
    )
    _validate_size([group.schedule for group in bound.groups], seen)
    show: Callable[[], None]
    if len(bound.groups) == 1:
        kept = kept_after(bound.groups[0].schedule, seen)
        is_due = kept.schedule.is_full(kept.state)
        if not before_compaction:
            kept.settle()
        record = ladder_record(kept) | {"compaction_due": is_due}
        show = partial(_show, bound, record, before_compaction=before_compaction)
    else:
        record = groups_record(bound, seen, settled=not before_compaction)
        show = partial(_show_groups, bound, record, before_compaction=before_compaction)
    if plot is not None:
        from lacache.evals.plots import plot_ladder

        plot_ladder(record, plot)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        show()
    if plot is not None:
        typer.echo(f"wrote {plot}", err=True)


def _validate_size(schedules: Sequence[Schedule], seen: int) -> None:
    """Refuse more token numbers than anybody would read."""
    held = sum(min(seen, s.capacity) * len(set(s.patterns)) for s in schedules)
    if held > _MOST_HELD:
        raise ConfigError(
            f"seen={seen} makes {held:,} tokens that layers hold, and at most {_MOST_HELD:,} are "
            "shown; try a smaller --budget or --seen"
        )


def _heads_for(policy: Policy, heads: int | None) -> int:
    """Return the number of KV heads of each layer, which only some policies need."""
    pairs = [member for member in _members(policy) if isinstance(member, tuple)]
    if heads is None and pairs:
        raise ConfigError(
            f"--heads is not given, and the policy names KV heads, such as number {pairs[0][1]} "
            f"of layer {pairs[0][0]}; give how many each layer of the model has: --heads "
            f"{1 + max(head for _, head in pairs)} or more"
        )
    return heads or 1


def _members(policy: Policy) -> Sequence[Member]:
    if isinstance(policy, RetrievalHeads):
        return [member for members in policy.heads for member in members]
    if isinstance(policy, Groups):
        return [member for group in policy.groups for member in group.members]
    return ()


def _show_groups(bound: BoundPolicy, record: dict[str, Any], *, before_compaction: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lacache.cli.output import format_numbers

    console = Console(highlight=False)
    console.print(f"{bound}", markup=False, soft_wrap=True)
    if bound.policy.needs_profile:
        console.print("For a model without a head profile; lacache calibrate makes one.")
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
                format_heads(having, bound.shape.num_heads),
                f"{len(tokens):,}",
                format_numbers(tokens),
            )
    console.print(table)


def _show(bound: BoundPolicy, record: dict[str, Any], *, before_compaction: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lacache.cli.output import format_numbers

    console = Console(highlight=False)
    console.print(f"{bound}", markup=False, soft_wrap=True)
    if bound.policy.needs_profile:
        console.print("For a model without a head profile; lacache calibrate makes one.")
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
        table.add_row(format_numbers(having), f"{len(tokens):,}", format_numbers(tokens))
    console.print(table)

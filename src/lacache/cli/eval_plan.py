"""The dry run of `lacache eval`: what would run, and what is missing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lacache.cli.eval_run import spaced
from lacache.errors import LaCacheError
from lacache.evals.dense_pass import prefill_tokens
from lacache.evals.record_file import recorded_specs
from lacache.evals.runs import RunSpec
from lacache.models import model_name

if TYPE_CHECKING:
    from lacache.evals.recipes import Recipe


@final
@dataclass(frozen=True)
class EvalPlan:
    """Runs, which of them a file of records holds, and what they need and do not find."""

    specs: Sequence[RunSpec]
    model: str
    out: Path
    recorded: frozenset[RunSpec]
    missing: dict[str, str]
    """By model or task, the reason."""

    @property
    def left(self) -> list[RunSpec]:
        """The runs that are not in the file yet."""
        return [spec for spec in self.specs if spec not in self.recorded]


def plan_eval(
    specs: Sequence[RunSpec], model: str | None, out: Path, *, dtype: str = "auto"
) -> EvalPlan:
    """Check the file of records, and the files and packages that the runs need.

    Neither the model nor the network is used.

    Raises:
        InputError: the file of records cannot be read.
    """
    missing: dict[str, str] = {}
    name = str(model)
    try:
        name = model_name(model)
    except LaCacheError as error:
        missing[f"model {model}"] = str(error)
    recorded = recorded_specs(specs, out, model=name, dtype=dtype)
    for spec in {spec.task_text: spec for spec in specs if spec not in recorded}.values():
        try:
            spec.task.validate()
        except LaCacheError as error:
            missing[f"task {spec.task_text}"] = str(error)
    return EvalPlan(specs, name, out, frozenset(recorded), missing)


def show_plan(plan: EvalPlan, recipe: Recipe | None = None, *, as_json: bool = False) -> None:
    """Print the runs and their tokens, about; those of a recipe in short.

    Exits with code 1 if anything is missing.
    """
    if as_json:
        typer.echo(json.dumps(_json(plan)))
    else:
        console = Console(highlight=False)
        if recipe is None:
            console.print(_runs(plan))
            for kv_dtype in _kv_dtypes(plan):
                console.print(f"All policies store keys and values in {kv_dtype}.", markup=False)
            if "dense" in {spec.protocol.first_token for spec in plan.specs}:
                console.print("With a dense prefill the first token is from the dense pass.")
        else:
            _show_recipe(console, plan, recipe)
        _show_sums(console, plan)
    if plan.missing:
        raise typer.Exit(1)


def _json(plan: EvalPlan) -> dict[str, object]:
    return {
        "model": plan.model,
        "out": str(plan.out),
        "runs": [
            {**spec.record(), "tokens": spec.tokens, "in_out": spec in plan.recorded}
            for spec in plan.specs
        ],
        "tokens": prefill_tokens(plan.specs),
        "left": {"runs": len(plan.left), "tokens": prefill_tokens(plan.left)},
        "missing": plan.missing,
    }


def _runs(plan: EvalPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("length", justify="right", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    for name in ("budget", "prefill"):
        table.add_column(name)
    table.add_column("tokens", justify="right", no_wrap=True)
    last = ""
    for spec in plan.specs:
        task = spec.task_text
        table.add_row(
            "" if task == last else spaced(task),
            f"{spec.length:,}",
            str(spec.count),
            spaced(spec.policy),
            spec.budget_text,
            spec.protocol.prefill,
            "done" if spec in plan.recorded else f"{spec.tokens:,}",
        )
        last = task
    return table


def _show_recipe(console: Console, plan: EvalPlan, recipe: Recipe) -> None:
    console.print(f"\n{recipe.name}: {recipe.title}", style="bold", markup=False)
    console.print(f"model: {plan.model}", markup=False)
    others = [name for name in recipe.models if name != plan.model]
    if others:
        console.print(f"models of the recipe, with --model: {', '.join(others)}", markup=False)
    for kv_dtype in _kv_dtypes(plan):
        console.print(f"keys and values: {kv_dtype}", markup=False)
    budgets: dict[str, dict[str, None]] = defaultdict(dict)
    for spec in plan.specs:
        budgets[str(spec.policy)][spec.budget_text] = None
    console.print("policies, and their budgets:")
    for policy, of_policy in budgets.items():
        at = ", ".join(filter(None, of_policy))
        console.print(Text(f"  {policy}" + (f" at {at}" if at else "")), soft_wrap=True)
    prefills = dict.fromkeys(spec.protocol.label for spec in plan.specs if not spec.is_full)
    console.print(f"prefill: {'; '.join(prefills)}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("task", overflow="fold")
    for name in ("lengths", "samples", "seeds", "runs", "tokens"):
        table.add_column(name, justify="right")
    by_task: dict[str, list[RunSpec]] = defaultdict(list)
    for spec in plan.specs:
        by_task[spec.task_text].append(spec)
    for task, specs in by_task.items():
        table.add_row(
            task,
            _span(spec.length for spec in specs),
            _span(spec.count for spec in specs),
            _span(spec.seed for spec in specs),
            f"{len(specs):,}",
            f"{prefill_tokens(specs):,}",
        )
    console.print(table)


def _show_sums(console: Console, plan: EvalPlan) -> None:
    runs = "run" if len(plan.specs) == 1 else "runs"
    message = f"{len(plan.specs):,} {runs}, about {prefill_tokens(plan.specs):,} tokens to prefill."
    if plan.recorded:
        verb = "is" if len(plan.recorded) == 1 else "are"
        left = f"{len(plan.left):,} left, about {prefill_tokens(plan.left):,} tokens"
        message += (
            f" {len(plan.recorded):,} {verb} in {plan.out} already, by settings and model "
            f"name: {left if plan.left else 'nothing is left'}."
        )
    console.print(message, markup=False, soft_wrap=True)
    if prefill_tokens(plan.specs) < sum(spec.tokens for spec in plan.specs):
        console.print(
            "One dense pass over a sample serves all its policies and budgets; more than 2 GiB of "
            "passes for a task are computed anew."
        )
    for what, error in plan.missing.items():
        message = f"missing for {what}: {' '.join(error.split())}"
        console.print(Text(message, style="red"), soft_wrap=True)


def _kv_dtypes(plan: EvalPlan) -> list[str]:
    """Return what keys and values are stored in, besides the model's own type."""
    return list(filter(None, dict.fromkeys(spec.kv_dtype for spec in plan.specs)))


def _span(numbers: Iterable[int]) -> str:
    low, high = min(found := set(numbers)), max(found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

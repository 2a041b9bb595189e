"""What an evaluation would run, without running it."""

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

from lacache.cli.run_labels import budget_label, in_words, method_label, protocol_label, task_label
from lacache.errors import LaCacheError
from lacache.evals.campaign import in_file
from lacache.evals.runs import RunSpec
from lacache.models import model_name

if TYPE_CHECKING:
    from lacache.evals.recipes import Recipe


@final
@dataclass(frozen=True)
class EvalPlan:
    """Runs, which of them a file of records holds, and what they lack."""

    specs: Sequence[RunSpec]
    model: str
    out: Path
    there: frozenset[RunSpec]
    missing: dict[str, str]
    """By model or task, what is not there."""

    @property
    def left(self) -> list[RunSpec]:
        """What is not in the file yet."""
        return [spec for spec in self.specs if spec not in self.there]


def plan_eval(
    specs: Sequence[RunSpec], model: str | None, out: Path, *, dtype: str = "auto"
) -> EvalPlan:
    """Look at the file of records, and at the files and packages that the runs need.

    Neither the model nor the network is asked.

    Raises:
        InputError: the file of records cannot be read.
    """
    missing: dict[str, str] = {}
    name = str(model)
    try:
        name = model_name(model)
    except LaCacheError as error:
        missing[f"model {model}"] = str(error)
    there = in_file(specs, out, model=name, dtype=dtype)
    for spec in {task_label(spec): spec for spec in specs if spec not in there}.values():
        try:
            spec.task.check()
        except LaCacheError as error:
            missing[f"task {task_label(spec)}"] = str(error)
    return EvalPlan(specs, name, out, frozenset(there), missing)


def show_plan(plan: EvalPlan, recipe: Recipe | None = None, *, as_json: bool = False) -> None:
    """Print the runs and the tokens that each reads, about; those of a recipe in short.

    Ends with exit code 1 if anything is missing.
    """
    if as_json:
        typer.echo(json.dumps(_json(plan)))
    else:
        console = Console(highlight=False)
        if recipe is None:
            console.print(_runs(plan))
            if "dense" in {spec.first_token for spec in plan.specs}:
                console.print("In the dense protocol the first token is from the dense pass.")
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
            {**spec.record(), "tokens": spec.tokens, "in_out": spec in plan.there}
            for spec in plan.specs
        ],
        "tokens": _tokens(plan.specs),
        "left": {"runs": len(plan.left), "tokens": _tokens(plan.left)},
        "missing": plan.missing,
    }


def _runs(plan: EvalPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("length", justify="right", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("method", overflow="fold")
    for name in ("budget", "protocol"):
        table.add_column(name)
    table.add_column("tokens", justify="right", no_wrap=True)
    last = ""
    for spec in plan.specs:
        task = task_label(spec)
        table.add_row(
            "" if task == last else in_words(task),
            f"{spec.length:,}",
            str(spec.count),
            in_words(method_label(spec)),
            budget_label(spec),
            spec.protocol,
            "done" if spec in plan.there else f"{spec.tokens:,}",
        )
        last = task
    return table


def _show_recipe(console: Console, plan: EvalPlan, recipe: Recipe) -> None:
    console.print(f"\n{recipe.name}: {recipe.title}", style="bold", markup=False)
    console.print(f"model: {plan.model}", markup=False)
    others = [name for name in recipe.models if name != plan.model]
    if others:
        console.print(f"models of the recipe, with --model: {', '.join(others)}", markup=False)
    budgets: dict[str, dict[str, None]] = defaultdict(dict)
    for spec in plan.specs:
        budgets[method_label(spec)][budget_label(spec)] = None
    console.print("methods, and their budgets:")
    for method, of_method in budgets.items():
        told = ", ".join(filter(None, of_method))
        console.print(Text(f"  {method}" + (f" at {told}" if told else "")), soft_wrap=True)
    protocols = dict.fromkeys(protocol_label(spec) for spec in plan.specs if budget_label(spec))
    console.print(f"protocol: {'; '.join(protocols)}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("task", overflow="fold")
    for name in ("lengths", "samples", "seeds", "runs", "tokens"):
        table.add_column(name, justify="right")
    by_task: dict[str, list[RunSpec]] = defaultdict(list)
    for spec in plan.specs:
        by_task[task_label(spec)].append(spec)
    for task, specs in by_task.items():
        table.add_row(
            task,
            _span(spec.length for spec in specs),
            _span(spec.count for spec in specs),
            _span(spec.seed for spec in specs),
            f"{len(specs):,}",
            f"{_tokens(specs):,}",
        )
    console.print(table)


def _show_sums(console: Console, plan: EvalPlan) -> None:
    runs = "run" if len(plan.specs) == 1 else "runs"
    told = f"{len(plan.specs):,} {runs}, about {_tokens(plan.specs):,} tokens to read."
    if plan.there:
        verb = "is" if len(plan.there) == 1 else "are"
        left = f"{len(plan.left):,} left, about {_tokens(plan.left):,} tokens"
        told += (
            f" {len(plan.there):,} {verb} in {plan.out} already, as the settings and the model's "
            f"name say: {left if plan.left else 'nothing is left'}."
        )
    console.print(told, markup=False, soft_wrap=True)
    for what, error in plan.missing.items():
        told = f"missing for {what}: {' '.join(error.split())}"
        console.print(Text(told, style="red"), soft_wrap=True)


def _span(numbers: Iterable[int]) -> str:
    low, high = min(found := set(numbers)), max(found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tokens(specs: Sequence[RunSpec]) -> int:
    return sum(spec.tokens for spec in specs)

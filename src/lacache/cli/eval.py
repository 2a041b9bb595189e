"""`lacache eval`: measure what bounded caches cost in quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from lacache.cli.head_profile import ensure_profile
from lacache.cli.options import (
    DEFAULT_THREADS,
    CalibrateOption,
    DtypeOption,
    KvDtypeOption,
    ModelOption,
    ThreadsOption,
)
from lacache.cli.preflight import computing_dtype, validate_device
from lacache.common.validation import validate_dtype, validate_kv_dtype, validate_threads
from lacache.errors import ConfigError
from lacache.models import model_name

if TYPE_CHECKING:
    from lacache.evals.recipes import Recipe
    from lacache.evals.suite import Suite

_SUITE = "What is run"


def eval(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="recipe NAME",
            help="A table of the paper: recipe ruler-longchat, wikitext-16k, longbench-llama2 or "
            "needle-llama3.2. The options below then change the recipe.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A tiny version of the suite, three minutes at most with the default model.",
        ),
    ] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks with settings, such as `passkey;needle:haystack=wikipedia`, separated by "
            "; or given several times: passkey, needle, multiturn, ppl and more.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="A policy, such as full, streaming or ladder:span=15; repeat it for several.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            "-b",
            help="Tokens per layer (512), a share of the prompt (0.25) or bytes (16MiB); several "
            "with commas or by repeating it.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Tokens of a prompt with its answers, or of the text for ppl: 1024,2048.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    prefills: Annotated[
        list[str] | None,
        typer.Option(
            "--prefill",
            help="chunked never holds more than the budget; dense prefills the prompt with a full "
            "cache, then compacts; chunked,dense runs both. Default: chunked.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    first_token: Annotated[
        str | None,
        typer.Option(
            help="With a dense prefill, where the first answer token comes from: cache (the "
            "compacted one) or dense (the dense pass). Default: cache.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Samples of each task and length.", show_default=False, rich_help_panel=_SUITE
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of the samples. Default: 0.", show_default=False, rich_help_panel=_SUITE
        ),
    ] = None,
    kv_dtype: KvDtypeOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    device: Annotated[
        str,
        typer.Option(help="Where the model runs, such as cpu or cuda.", rich_help_panel="Model"),
    ] = "cpu",
    threads: ThreadsOption = DEFAULT_THREADS,
    calibrate: CalibrateOption = True,
    out: Annotated[
        Path,
        typer.Option(
            help="File of records, one JSON line a run; creates its folder. "
            "Runs that are in it are skipped."
        ),
    ] = Path("eval.jsonl"),
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Begin no run after so many minutes; the same command continues.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of the tables.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List the runs with their tokens, how many --out has already, and the files and "
            "packages that are missing; run nothing.",
        ),
    ] = False,
) -> None:
    """Measure what bounded caches cost: retrieval and perplexity at equal bytes.

    Without options this runs a small suite, 40 minutes at most on 2 cores with the default model;
    with `recipe NAME` a table of the paper, for its model unless --model names another. Records are
    appended to a file; the same command again continues where it stopped. A run that fails does not
    stop the others, and makes the exit code 1.
    """
    validate_dtype(dtype)
    validate_kv_dtype(kv_dtype)
    validate_threads(threads)

    from dataclasses import replace

    from lacache.evals.suite import QUICK, SMALL, split_list

    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if tasks is not None:
        changes["tasks"] = tuple(split_list(tasks))
    if policies is not None:
        changes["policies"] = tuple(split_list(policies))
    if budgets is not None:
        changes["budgets"] = changes["ppl_budgets"] = tuple(split_list(budgets))
    if lengths is not None:
        numbers = tuple(_number("lengths", part) for part in split_list([lengths]))
        changes["lengths"] = changes["ppl_lengths"] = numbers
    if prefills is not None:
        changes["prefills"] = tuple(split_list(prefills))
    if first_token is not None:
        changes["first_token"] = cast(Literal["cache", "dense"], first_token)
    if samples is not None:
        changes["samples"] = samples
    if kv_dtype is not None:
        changes["kv_dtype"] = kv_dtype
    chosen = _recipe(recipe, quick=quick) if recipe else None
    if chosen is not None:
        specs = chosen.runs(**changes)
        model = model or chosen.models[0]
    else:
        suite: Suite = replace(QUICK if quick else SMALL, **changes)
        specs = suite.runs()

    from lacache.cli.eval_plan import plan_eval, show_plan

    plan = plan_eval(specs, model, out, dtype=dtype)
    if dry_run:
        show_plan(plan, chosen, as_json=as_json)
        return
    model_name(model)
    for task in dict.fromkeys(spec.task for spec in plan.left):
        task.validate()

    from lacache.cli.eval_run import evaluate
    from lacache.evals.record_file import validate_appendable
    from lacache.models import load_model

    validate_appendable(out)
    validate_device(device)
    loaded = load_model(model, dtype=computing_dtype(dtype), threads=threads)
    try:
        loaded.model.to(device)  # type: ignore[arg-type]  # its stubs know no text
    except RuntimeError as error:  # such as too little memory there
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={device} cannot hold the model ({reason}); try --device cpu"
        ) from error
    ensure_profile(loaded, [spec.policy for spec in plan.left], calibrate=calibrate)
    evaluate(specs, loaded, out, minutes=minutes, as_json=as_json)


def _recipe(words: list[str], *, quick: bool) -> Recipe:
    from lacache.evals.recipes import RECIPES

    known = ", ".join(RECIPES)
    if words[0] != "recipe" or len(words) != 2 or words[1] not in RECIPES:
        raise ConfigError(
            f"{' '.join(words)!r} must be 'recipe NAME' with one of {known}; try recipe "
            f"{next(iter(RECIPES))}"
        )
    if quick:
        raise ConfigError("--quick is no recipe; try --samples 2 for a part of one")
    return RECIPES[words[1]]


def _number(name: str, text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise ConfigError(f"{name}={text} must be whole numbers; try --{name} 1024,2048") from None

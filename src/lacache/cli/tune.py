"""`lacache tune`: find the policy that suits a model and a text at a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lacache.cli.head_profile import ensure_profile
from lacache.cli.options import (
    DEFAULT_THREADS,
    CalibrateOption,
    DtypeOption,
    ModelOption,
    ThreadsOption,
)
from lacache.cli.preflight import computing_dtype, validate_loading
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.policies import DEFAULT_POLICY, Budget, parse_budget

if TYPE_CHECKING:
    from lacache.evals.runs import RunSpec

_SHARE_LENGTH = 2048
_LEAST_LENGTH = 1024
_GOALS = ("both", "text", "recall")


def tune(
    text: Annotated[
        str,
        typer.Option(
            "--text",
            "-t",
            help="A text like those to come: a UTF-8 file, or a built-in text such as "
            "shakespeare:hamlet.",
        ),
    ],
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="Tokens per layer (512), a share of --length (0.25) or bytes (64MiB).",
        ),
    ],
    model: ModelOption = None,
    minutes: Annotated[
        float,
        typer.Option(help="Time to measure in, without loading; all starts of a search together."),
    ] = 10.0,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of an excerpt of the text. Default: four times the budget, at least 1024, "
            "and no more than the model's context; 2048 for a share.",
            show_default=False,
        ),
    ] = None,
    prefer: Annotated[
        str,
        typer.Option(
            help="Which recommendation to use and save: text (least perplexity), recall (most "
            "answers about the text) or both."
        ),
    ] = "both",
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="A candidate instead of the built-in list; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of excerpts and needles.")] = 0,
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = DEFAULT_THREADS,
    calibrate: CalibrateOption = True,
    out: Annotated[
        Path,
        typer.Option(
            help="File of records, one JSON line a run; creates its folder. "
            "Runs that are in it are used."
        ),
    ] = Path("tune.jsonl"),
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the Pareto front, as a PNG file; creates its folder."),
    ] = None,
    save_policy: Annotated[
        Path | None,
        typer.Option(
            "--save-policy",
            help="Write the preferred policy as text, for --policy @FILE; creates its folder.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as JSON in place of the tables.")
    ] = False,
) -> None:
    """Find the best policy for a model and a text in bounded time.

    Compares candidates at equal bytes on one half of the text, by perplexity and by the loss of
    answers about needles hidden in it; repeatedly gives more text to the better half of them; then
    measures the winners and StreamingLLM on the other half. Without text and time for two excerpts
    of each half it recommends nothing. The same command again continues where it stopped.
    """
    validate_loading(model, dtype=dtype, threads=threads)
    validate_int("seed", seed, 0)
    if prefer not in _GOALS:
        raise ConfigError(f"prefer={prefer!r} must be one of {', '.join(_GOALS)}; try both")
    parsed = parse_budget(budget)

    from rich.console import Console

    from lacache.cli.tuning import show, show_use, tuning_bars
    from lacache.common.records import replacing, validate_replaceable
    from lacache.evals.plots.style import require_matplotlib, validate_png
    from lacache.evals.plots.tuning import plot_tuning
    from lacache.evals.policies import parse_eval_policy
    from lacache.evals.record_file import Outcome, run_all, validate_appendable
    from lacache.evals.runner import EvalRunner
    from lacache.evals.suite import split_list
    from lacache.evals.tasks.documents import load_named_document
    from lacache.evals.tuning.candidates import default_candidates, given_candidates
    from lacache.evals.tuning.result import Settings, tuning_record, validate_minutes
    from lacache.evals.tuning.search import Search
    from lacache.evals.tuning.split import split_text
    from lacache.models import load_model
    from lacache.models.model_info import model_info

    validate_minutes(minutes)
    given = None if policies is None else split_list(policies)
    if given == []:
        raise ConfigError("no policies were given; give at least one, or leave --policy out")
    if plot is not None:
        validate_png(plot)
        require_matplotlib()
        validate_replaceable(plot)
    if save_policy is not None:
        validate_replaceable(save_policy)
    validate_appendable(out)
    # Without candidates of the user, those of a model with a head profile are tried too.
    parsed_policies = [parse_eval_policy(policy) for policy in given or (DEFAULT_POLICY,)]
    if not parsed.num_bytes:  # else the model's bytes of a token decide
        Settings(*_sizes(parsed, length, bytes_per_token=1, context=None), minutes)
    load_named_document(text)
    loaded = load_model(model, dtype=computing_dtype(dtype), threads=threads)
    info = model_info(loaded.model)
    context = getattr(info.text_config, "max_position_embeddings", None)
    capacity, length = _sizes(parsed, length, info.bytes_per_token, context)
    settings = Settings(capacity, length, minutes)
    parts = split_text(loaded.tokenizer, text, length=length, seed=seed)
    console = Console(stderr=True, highlight=False)
    ensure_profile(loaded, parsed_policies, calibrate=calibrate)
    candidates = (
        default_candidates(loaded.model, capacity)
        if given is None
        else given_candidates(loaded.model, capacity, given)
    )
    runner = EvalRunner(loaded)
    with tuning_bars(console, minutes) as bars:

        def measure(spec: RunSpec) -> Outcome:
            (outcome,) = run_all(
                runner, [spec], out, on_start=bars.on_start, on_tokens=bars.on_tokens
            )
            return outcome

        found = Search(settings, parts, candidates, measure, bars.on_step).run()
    record = tuning_record(found, settings, parts, budget=budget, model=loaded.name)
    if save_policy is not None:
        with replacing(save_policy) as path:
            path.write_text(
                f"# lacache tune: for {prefer}, {loaded.name} on {text}, --budget {capacity}\n"
                f"{record['recommended'][prefer]}\n",
                encoding="utf-8",
            )
    if as_json:
        typer.echo(json.dumps(record, allow_nan=False))
    else:
        shown = Console(highlight=False)
        show(shown, record)
        show_use(shown, record, prefer, info.num_heads, save_policy)
    if save_policy is not None:
        typer.echo(f"wrote {save_policy}", err=True)
    if plot is not None:
        plot_tuning(record, plot)
        typer.echo(f"wrote {plot}", err=True)


def _sizes(
    budget: Budget, length: int | None, bytes_per_token: int, context: int | None
) -> tuple[int, int]:
    """Return the capacity, and the tokens of an excerpt."""
    if length is not None:
        validate_int("length", length, 2)
    capacity = budget.capacity(
        bytes_per_token=bytes_per_token, prompt_tokens=length or _SHARE_LENGTH, smallest=1
    )
    if length is not None or budget.share:
        return capacity, length or _SHARE_LENGTH
    length = max(_LEAST_LENGTH, 4 * capacity)
    # Beyond its context the full cache, which the needles are tried on, does not work.
    return capacity, length if context is None else min(length, context)

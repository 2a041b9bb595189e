"""`lacache generate`: continue a prompt of any length in constant memory."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lacache.cli.engine_setup import CacheOptions, EngineOptions, generator_factory
from lacache.cli.head_profile import ensure_profile
from lacache.cli.options import (
    DEFAULT_THREADS,
    WORTH_COMPILING,
    BudgetOption,
    CalibrateOption,
    CompileOption,
    DtypeOption,
    KvDtypeOption,
    MinPOption,
    ModelOption,
    PolicyOption,
    PrefillOption,
    RepetitionPenaltyOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    WeightsOption,
)
from lacache.cli.output import format_memory, report_record
from lacache.cli.preflight import validate_loading, validate_memory
from lacache.cli.process import heavy_imports
from lacache.cli.terminal import read_prompt
from lacache.cli.weights import Weights
from lacache.engine.detokenizer import StopStrings
from lacache.engine.sampling import Sampling
from lacache.errors import InputError
from lacache.policies import DEFAULT_POLICY


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue. Without it, --file or standard input."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from a text file.")
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            "-n",
            help="Most new tokens; -1 is without limit (Ctrl-C stops), 0 only prefills.",
        ),
    ] = 256,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Continue after the end token of the model."),
    ] = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--raw",
            help="Apply the model's chat template to the prompt as a user's message, or take the "
            "prompt as it is.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object at the end instead of the text."),
    ] = False,
    budget: BudgetOption = None,
    policy: PolicyOption = DEFAULT_POLICY,
    prefill: PrefillOption = "chunked",
    kv_dtype: KvDtypeOption = None,
    temperature: TemperatureOption = 0.7,
    top_k: TopKOption = 0,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    stop: StopOption = None,
    seed: SeedOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    weights: WeightsOption = None,
    compile: CompileOption = None,
    threads: ThreadsOption = DEFAULT_THREADS,
    calibrate: CalibrateOption = True,
) -> None:
    """Continue a prompt of any length in constant memory.

    The new text goes to standard output while it is generated, and a summary to standard error.
    """
    if max_new_tokens < -1:
        raise InputError(
            f"max_new_tokens={max_new_tokens} must be -1 (without limit) or at least 0; try 256"
        )
    validate_loading(model, dtype=dtype, threads=threads)
    options = CacheOptions.parse(budget, policy, prefill)
    if prefill == "chunked":  # dense prefill takes the memory that the prompt needs
        validate_memory(options.budget)
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    stops = StopStrings(stop or ())
    num_new = None if max_new_tokens < 0 else max_new_tokens
    if compile is None:
        compile = num_new is None or num_new >= WORTH_COMPILING
    parsed = Weights.parse(weights, model)
    engine_options = EngineOptions(compile=compile, kv_dtype=kv_dtype, weights=parsed.in_engine)
    engine_options.validate_unused(options.runs_without_engine)
    text = read_prompt(prompt, file)

    with heavy_imports():
        from lacache.cli.generation import generate_text
        from lacache.models import load_model

    loaded = load_model(model, dtype=dtype, threads=threads, weights=parsed.at_loading)
    ids = _tokens(loaded.tokenizer, text, chat=chat)
    ensure_profile(loaded, [options.policy], calibrate=calibrate)
    generator = generator_factory(loaded.model, options, engine_options, len(ids), sampling)()
    run = generate_text(
        loaded,
        ids,
        generator,
        stops=stops,
        max_new_tokens=num_new,
        ignore_eos=ignore_eos,
        echo=not as_json,
    )
    report = generator.report()
    if as_json:
        record = {"model": loaded.name, **run.record(), "cache": report_record(report)}
        typer.echo(json.dumps(record))
    else:
        alike = report.num_cached == report.most_cached
        what = "each layer holds" if alike else "a KV head holds on average"
        typer.echo(
            f"prefill: {run.prompt_tokens:,} tokens ({run.prefill_rate:,.0f}/s), decode: "
            f"{run.new_tokens:,} ({run.decode_rate:,.1f}/s), {what} {report.num_cached:,}, in "
            f"{format_memory(report)} of memory",
            err=True,
        )
    if run.finish_reason == "interrupt":
        raise typer.Exit(130)


def _tokens(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    if chat:
        from lacache.engine.conversation import ChatTemplate

        return ChatTemplate(tokenizer).first(text)
    # Without the warning about prompts longer than the model's context, which are supported.
    ids: list[int] = tokenizer(text, verbose=False).input_ids
    return ids

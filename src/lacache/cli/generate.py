"""`lacache generate`: read a prompt of any length, write on."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lacache.cli.cache_options import CacheOptions
from lacache.cli.loading import validate_loading, validate_memory
from lacache.cli.opening import EngineOptions, opener
from lacache.cli.options import (
    DEFAULT_THREADS,
    WORTH_COMPILING,
    BudgetOption,
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
from lacache.cli.output import format_bytes, report_record
from lacache.cli.terminal import read_prompt
from lacache.engine.sampling import Sampling
from lacache.engine.stop import StopStrings
from lacache.errors import InputError
from lacache.policies import DEFAULT_POLICY


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to go on from. Without it, --file or standard input."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from a text file.")
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            "-n",
            help="How many tokens to write; -1 is without end (stop it with Ctrl-C), 0 only reads.",
        ),
    ] = 256,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Go on where the model ends the text."),
    ] = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--raw",
            help="Take the prompt as a user's message and put the model's chat template around "
            "it, or read it as it stands.",
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
) -> None:
    """Read a prompt of any length and write on, in constant memory.

    The new text goes to standard output as it comes, and a summary to standard error.
    """
    if max_new_tokens < -1:
        raise InputError(
            f"max_new_tokens={max_new_tokens} must be -1 (without end) or at least 0; try 256"
        )
    validate_loading(model, dtype=dtype, threads=threads)
    options = CacheOptions.parse(budget, policy, prefill)
    if prefill == "chunked":  # dense takes what the prompt needs
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
    how = EngineOptions(compile=compile, kv_dtype=kv_dtype, weights=weights)
    text = read_prompt(prompt, file)

    from lacache.cli.writing import write
    from lacache.models import load_model

    loaded = load_model(model, dtype=dtype, threads=threads)
    ids = _tokens(loaded.tokenizer, text, chat=chat)
    writer = opener(loaded.model, options, how, len(ids), sampling)()
    run = write(
        loaded,
        ids,
        writer,
        stops=stops,
        max_new_tokens=num_new,
        ignore_eos=ignore_eos,
        echo=not as_json,
    )
    report = writer.report()
    if as_json:
        record = {"model": loaded.name, **run.record(), "cache": report_record(report)}
        typer.echo(json.dumps(record))
    else:
        alike = report.num_cached == report.most_cached
        who = "each layer holds" if alike else "a KV head holds on average"
        typer.echo(
            f"read {run.num_read:,} tokens ({run.read_rate:,.0f}/s), wrote {run.num_written:,} "
            f"({run.write_rate:,.1f}/s), {who} {report.num_cached:,}, in "
            f"{format_bytes(report.bytes)} of memory",
            err=True,
        )
    if run.finish_reason == "interrupt":
        raise typer.Exit(130)


def _tokens(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    if chat:
        from lacache.engine.chat_template import ChatTemplate

        return ChatTemplate(tokenizer).first(text)
    # A text longer than the model's context is what this package is for: no warning.
    ids: list[int] = tokenizer(text, verbose=False).input_ids
    return ids

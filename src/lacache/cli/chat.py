"""`lacache chat`: a conversation of any length in constant memory."""

import contextlib
import sys
from dataclasses import replace
from importlib import import_module
from typing import Annotated, Any, final

import typer

from lacache.cli.engine_setup import CacheOptions, EngineOptions, generator_factory
from lacache.cli.head_profile import ensure_profile
from lacache.cli.options import (
    DEFAULT_THREADS,
    CalibrateOption,
    CompileOption,
    DtypeOption,
    KvDtypeOption,
    MinPOption,
    ModelOption,
    PolicyOption,
    RepetitionPenaltyOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    WeightsOption,
)
from lacache.cli.preflight import validate_loading, validate_memory
from lacache.cli.process import heavy_imports, interruptible
from lacache.cli.terminal import validate_text
from lacache.cli.weights import Weights
from lacache.engine.detokenizer import Detokenizer, StopStrings, find_eos_token_ids
from lacache.engine.sampling import Sampling
from lacache.errors import ConfigError, InputError
from lacache.policies import DEFAULT_POLICY

_HELP = """\
/state  what the cache holds
/reset  clear the conversation, keep the system prompt
/help   this list
/quit   leave, as the end of the input does (Ctrl-D)
Ctrl-C during a reply stops the reply and keeps the conversation."""


def chat(
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            "-s",
            help="System prompt, never evicted. Default: that of the model's chat template.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", help="Most tokens of a reply; -1 leaves it to the model."
        ),
    ] = -1,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Tokens per layer (512) or bytes (64MiB). Default: 512; none for full and groups.",
            show_default=False,
            rich_help_panel="Cache",
        ),
    ] = None,
    policy: PolicyOption = DEFAULT_POLICY,
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
    compile: CompileOption = False,
    threads: ThreadsOption = DEFAULT_THREADS,
    calibrate: CalibrateOption = True,
) -> None:
    """Chat with a model for as long as you like, in constant memory.

    The system prompt is pinned: the attention sinks are all tokens before your first word. Each
    turn costs only its own tokens, at any length of the conversation. The budget is in tokens or
    bytes. Reads lines from a terminal or a pipe; /help lists the commands.
    """
    if max_new_tokens == 0 or max_new_tokens < -1:
        raise InputError(
            f"max_new_tokens={max_new_tokens} must be -1 (up to the model) or at least 1; try 512"
        )
    options = CacheOptions.parse(budget, policy)
    if options.budget is not None and options.budget.share:
        raise ConfigError(
            f"budget={budget} is a share of a prompt, and how long a conversation gets is not "
            "known; try 512 (tokens) or '64MiB' (bytes)"
        )

    validate_loading(model, dtype=dtype, threads=threads)
    validate_memory(options.budget)
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    stops = tuple(stop or ())
    StopStrings(stops)
    parsed = Weights.parse(weights, model)
    engine_options = EngineOptions(
        compile=compile or False, kv_dtype=kv_dtype, weights=parsed.in_engine
    )
    engine_options.validate_unused(options.runs_without_engine)
    if system is not None:
        validate_text(system, "the system prompt")

    with heavy_imports():
        from lacache.engine.conversation import ChatTemplate, Conversation
        from lacache.models import load_model

    loaded = load_model(model, dtype=dtype, threads=threads, weights=parsed.at_loading)
    template = ChatTemplate(loaded.tokenizer, system)
    ensure_profile(loaded, [options.policy], calibrate=calibrate)
    pinning = options.policy.with_sinks(template.num_pinned)
    options = replace(options, policy=pinning)
    new_generator = generator_factory(
        loaded.model, options, engine_options, template.num_pinned, sampling
    )
    conversation = Conversation(
        new_generator, template, eos_token_ids=find_eos_token_ids(loaded.model, loaded.tokenizer)
    )
    limit = None if max_new_tokens < 0 else max_new_tokens
    _Chat(conversation, loaded.tokenizer, template.num_pinned, limit, stops).run(loaded.name)


@final
class _Chat:
    """Read lines and print the replies to them."""

    def __init__(
        self,
        conversation: Any,
        tokenizer: Any,
        num_pinned: int,
        max_new_tokens: int | None,
        stops: tuple[str, ...],
    ) -> None:
        self._conversation = conversation
        self._tokenizer = tokenizer
        self._num_pinned = num_pinned
        self._max_new_tokens = max_new_tokens
        self._stops = stops
        self._is_terminal = sys.stdin.isatty()

    def run(self, name: str) -> None:
        """Chat until the end of the input, or /quit."""
        if self._is_terminal:
            with contextlib.suppress(ImportError):  # line editing, where there is any
                import_module("readline")

            typer.echo(f"{name}; {self._num_pinned} tokens pinned; /help lists the commands.")
        while (line := self._line()) is not None:
            message = line.strip()
            if message in ("/quit", "/exit"):
                break
            if message.startswith("/"):
                self._command(message)
            elif message:
                self._answer(validate_text(message, "the message"))

    def _line(self) -> str | None:
        try:
            return input("> " if self._is_terminal else "")
        except UnicodeDecodeError as error:
            raise InputError("the input is not UTF-8 text; give lines of text in UTF-8") from error
        except EOFError:
            if self._is_terminal:
                typer.echo()
            return None

    def _command(self, command: str) -> None:
        if command == "/state":
            from rich.console import Console

            from lacache.cli.output import report_table

            Console().print(report_table(self._conversation.report(), self._num_pinned))
        elif command == "/reset":
            self._conversation.reset()
            typer.echo("Cleared; the system prompt stays.")
        else:
            if command != "/help":
                typer.echo(f"There is no command {command}:")
            typer.echo(_HELP)

    def _answer(self, message: str) -> None:
        text, stops = Detokenizer(self._tokenizer), StopStrings(self._stops)
        with interruptible() as stopped:
            for token in self._conversation.reply(message, max_new_tokens=self._max_new_tokens):
                typer.echo(stops.push(text.push(token)), nl=False)
                if stopped() or stops.found is not None:
                    break
        typer.echo(stops.push(text.flush()) + stops.flush())

"""Generation from one prompt: progress, text as it is generated, and figures at the end."""

import time
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, final

import typer

from lacache.cli.process import interruptible
from lacache.cli.terminal import prefill_bar
from lacache.engine.detokenizer import Detokenizer, StopStrings, find_eos_token_ids
from lacache.engine.generator import TextGenerator
from lacache.models import LoadedModel


@final
@dataclass
class Generation:
    """A generated text with its counts and times."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    text: str = ""
    finish_reason: str = "length"
    """Or "eos", "stop" for a stop string, "interrupt" for Ctrl-C."""
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / max(self.prefill_seconds, 1e-9)

    @property
    def decode_rate(self) -> float:
        """New tokens per second, without the first, which the prefill generates."""
        return max(self.new_tokens - 1, 0) / max(self.decode_seconds, 1e-9)

    def record(self) -> dict[str, Any]:
        """Return the generation for JSON."""
        return {
            "text": self.text,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "finish_reason": self.finish_reason,
            "prefill_seconds": round(self.prefill_seconds, 4),
            "decode_seconds": round(self.decode_seconds, 4),
        }


def generate_text(
    loaded: LoadedModel,
    ids: list[int],
    generator: TextGenerator,
    *,
    stops: StopStrings,
    max_new_tokens: int | None,
    ignore_eos: bool,
    echo: bool,
) -> Generation:
    """Generate until an end token, a stop string, the limit or Ctrl-C.

    Args:
        loaded: model and tokenizer.
        ids: the prompt's tokens.
        generator: a new one.
        stops: strings that end the text.
        max_new_tokens: most new tokens; None is without limit.
        ignore_eos: whether to continue after an end token.
        echo: whether to print the text as it is generated, instead of returning it.
    """
    run = Generation()
    eos_token_ids = (
        frozenset() if ignore_eos else find_eos_token_ids(loaded.model, loaded.tokenizer)
    )
    text = Detokenizer(loaded.tokenizer)
    ends_line = True

    def emit(new_text: str) -> None:
        nonlocal ends_line
        if echo and new_text:
            typer.echo(new_text, nl=False)
            ends_line = new_text.endswith("\n")
        elif not echo:
            run.text += new_text

    with interruptible() as stopped, prefill_bar(len(ids)) as (advance_bar, close_bar):

        def on_progress(num_new: int) -> None:
            run.prompt_tokens += num_new
            advance_bar(num_new)
            if stopped():
                raise KeyboardInterrupt

        tokens = generator.generate(
            ids, max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids, on_progress=on_progress
        )
        start = time.perf_counter()
        try:
            first = list(islice(tokens, 1))
            run.prefill_seconds = time.perf_counter() - start
            close_bar()
            for token in chain(first, tokens):
                run.new_tokens += 1
                emit(stops.push(text.push(token)))
                if stops.found is not None:
                    break
                if token in eos_token_ids:
                    run.finish_reason = "eos"
                elif stopped():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            run.finish_reason = "interrupt"
        finally:
            seconds = time.perf_counter() - start
            run.prefill_seconds = run.prefill_seconds or seconds
            run.decode_seconds = seconds - run.prefill_seconds
    emit(stops.push(text.flush()) + stops.flush())
    if stops.found is not None and run.finish_reason != "interrupt":
        run.finish_reason = "stop"
    if not ends_line:
        typer.echo()
    return run

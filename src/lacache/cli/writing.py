"""One prompt, read and continued, with text and figures as it goes."""

import time
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, final

import typer

from lacache.cli.process import interruptible
from lacache.cli.terminal import prefill_bar
from lacache.engine.detokenizer import Detokenizer
from lacache.engine.generator import TextGenerator
from lacache.engine.stop import StopStrings, eos_token_ids
from lacache.models import LoadedModel


@final
@dataclass
class Run:
    """What was read and written; times in seconds."""

    num_read: int = 0
    num_written: int = 0
    text: str = ""
    finish_reason: str = "length"
    """Or "eos", "stop" for a stop string, "interrupt" for Ctrl-C."""
    read_seconds: float = 0.0
    write_seconds: float = 0.0

    @property
    def read_rate(self) -> float:
        """Tokens a second."""
        return self.num_read / max(self.read_seconds, 1e-9)

    @property
    def write_rate(self) -> float:
        """Tokens a second, without the first, which reading gives."""
        return max(self.num_written - 1, 0) / max(self.write_seconds, 1e-9)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "text": self.text,
            "prompt_tokens": self.num_read,
            "new_tokens": self.num_written,
            "finish_reason": self.finish_reason,
            "read_seconds": round(self.read_seconds, 4),
            "write_seconds": round(self.write_seconds, 4),
        }


def write(
    loaded: LoadedModel,
    ids: list[int],
    writer: TextGenerator,
    *,
    stops: StopStrings,
    max_new_tokens: int | None,
    ignore_eos: bool,
    echo: bool,
) -> Run:
    """Read `ids` and write on, until the end, a stop string, the limit or Ctrl-C.

    With `echo` the text goes to standard output as it comes, and is not kept; else it is in the
    result.
    """
    run = Run()
    ends = frozenset() if ignore_eos else eos_token_ids(loaded.model, loaded.tokenizer)
    text = Detokenizer(loaded.tokenizer)
    ends_line = True

    def give(piece: str) -> None:
        nonlocal ends_line
        if echo and piece:
            typer.echo(piece, nl=False)
            ends_line = piece.endswith("\n")
        elif not echo:
            run.text += piece

    with interruptible() as stopped, prefill_bar(len(ids)) as (advance_bar, close_bar):

        def on_progress(num_new: int) -> None:
            run.num_read += num_new
            advance_bar(num_new)
            if stopped():
                raise KeyboardInterrupt

        tokens = writer.generate(
            ids, max_new_tokens=max_new_tokens, eos_token_ids=ends, on_progress=on_progress
        )
        started = time.perf_counter()
        try:
            first = list(islice(tokens, 1))
            run.read_seconds = time.perf_counter() - started
            close_bar()
            for token in chain(first, tokens):
                run.num_written += 1
                give(stops.push(text.push(token)))
                if stops.found is not None:
                    break
                if token in ends:
                    run.finish_reason = "eos"
                elif stopped():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            run.finish_reason = "interrupt"
        finally:
            spent = time.perf_counter() - started
            run.read_seconds = run.read_seconds or spent
            run.write_seconds = spent - run.read_seconds
    give(stops.push(text.flush()) + stops.flush())
    if stops.found is not None and run.finish_reason != "interrupt":
        run.finish_reason = "stop"
    if not ends_line:
        typer.echo()
    return run

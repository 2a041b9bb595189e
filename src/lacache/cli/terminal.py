"""Prompts from the terminal, a file or a pipe, and the progress bar of their prefill."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lacache.corpora.document import decode_text, read_document
from lacache.errors import InputError

# The prefill of a shorter prompt ends before a bar could be seen.
_LONG_PROMPT = 256


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """Return the prompt from the one place where it was given.

    Args:
        prompt: the command's argument.
        file: the command's file; without both, standard input is read.

    Raises:
        InputError: both or neither were given, or the prompt is empty, unreadable or not UTF-8.
    """
    if prompt is not None and file is not None:
        raise InputError(
            f"two prompts were given, an argument and --file {file}; leave one of them out"
        )
    if prompt is not None:
        return validate_text(prompt, "the prompt")
    if file is not None:
        return read_document(file).content
    if sys.stdin.isatty():
        raise InputError("no prompt was given; give a text, --file FILE, or pipe one in")
    return decode_text(sys.stdin.buffer.read(), "standard input")


def validate_text(text: str, name: str) -> str:
    """Return a typed text if it is valid and not empty.

    Args:
        text: from the command line or a terminal.
        name: the text's name in errors.

    Raises:
        InputError: it has bytes that are not UTF-8, or nothing but white space.
    """
    if not text.strip():
        raise InputError(f"{name} is empty and must hold some text; give at least a word")
    # Python passes bytes that it cannot decode as lone surrogates.
    return decode_text(text.encode(errors="surrogateescape"), name)


@contextmanager
def prefill_bar(num_tokens: int) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """Show a progress bar on stderr, unless the prompt is short or stderr is not a terminal.

    Yields:
        A function that advances the bar by a number of tokens, and one that removes it.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("prefill"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=num_tokens < _LONG_PROMPT or not console.is_terminal,
    )
    with progress:
        task = progress.add_task("", total=num_tokens)
        yield lambda num_new: progress.advance(task, num_new), progress.stop

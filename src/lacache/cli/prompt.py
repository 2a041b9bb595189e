"""The prompt: an argument, a file or standard input."""

import sys
from pathlib import Path

from lacache.corpora.document import decode_text, read_document
from lacache.errors import InputError


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt's text, from the one place where it was given.

    Raises:
        InputError: no place or two, a file that cannot be read, no text, or an empty one.
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
    """What was typed, if it is text.

    Args:
        text: from the command line or a terminal.
        name: what to call it in errors.

    Raises:
        InputError: it has bytes that are not UTF-8, or is nothing but white space.
    """
    if not text.strip():
        raise InputError(f"{name} is empty and must hold some text; give at least a word")
    # Python hands over bytes that it cannot decode as lone surrogates.
    return decode_text(text.encode(errors="surrogateescape"), name)

"""Fit prompts to a length in tokens."""

from collections.abc import Callable, Sequence
from typing import Any

from lacache.errors import InputError

_MOST_SENTENCES = 1 << 20


def count_tokens(tokenizer: Any, *parts: str) -> int:
    """Count the tokens of strings encoded one by one, and of a start token if there is one.

    A context and its questions are encoded in the same way.
    """
    start = len(tokenizer("").input_ids)
    return start + sum(
        len(tokenizer(part, add_special_tokens=False, verbose=False).input_ids) for part in parts
    )


def largest_fitting(
    fits: Callable[[int], bool], *, least: int, most: int, start: int
) -> int | None:
    """Return the largest size in `least..most` that fits, or None if `least` does not.

    The search doubles its steps away from `start`, then halves them. Where `fits` is not quite
    monotonic the result still fits, but a larger one may too.
    """
    below, above = least - 1, most + 1
    size, step = min(max(start, least), most), 1
    while above - below > 1:
        if fits(size):
            below = size
        else:
            above = size
        if above > most:
            size = min(below + step, most)
        elif below < least:
            size = max(above - step, least)
        else:
            size = (below + above) // 2
        step *= 2
    return below if below >= least else None


def fit_context(
    tokenizer: Any,
    build: Callable[[int], str],
    *,
    length: int,
    questions: Sequence[str],
    new_tokens: int,
    task: str,
) -> str:
    """Build the largest context whose prompt and answers fit into a length.

    Args:
        tokenizer: the model's.
        build: makes a context of a size, such as the number of sentences around the needles.
        length: tokens of the context, the questions and the answers.
        questions: the texts of the questions.
        new_tokens: tokens of all answers.
        task: name of the task, for the error.

    Raises:
        InputError: the length is too short for the needles alone.
    """
    room = length - new_tokens
    size = largest_fitting(
        lambda size: count_tokens(tokenizer, build(size), *questions) <= room,
        least=0,
        most=_MOST_SENTENCES,
        start=max(0, room // 24),
    )
    if size is None:
        least = count_tokens(tokenizer, build(0), *questions) + new_tokens
        raise InputError(
            f"length={length} is too short for task {task}, which needs {least} tokens without "
            f"any filler; try length={2 * least}"
        )
    return build(size)

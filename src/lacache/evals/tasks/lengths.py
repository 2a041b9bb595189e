"""Make samples as long as they are asked to be."""

from collections.abc import Callable
from typing import Any


def count_tokens(tokenizer: Any, *texts: str) -> int:
    """Tokens of texts that are encoded one by one and joined, with a start token if there is one.

    That is how a context and its questions are read.
    """
    start = len(tokenizer("").input_ids)
    return start + sum(
        len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in texts
    )


def largest_fitting(
    fits: Callable[[int], bool], *, least: int, most: int, start: int
) -> int | None:
    """The largest size in `least..most` that fits, or None if `least` does not.

    Doubling steps away from `start`, then halves. Where `fits` is not quite monotonic the result
    still fits, but a larger one may too.
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

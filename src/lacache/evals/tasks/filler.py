"""Sentences that a needle is hidden among."""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from lacache.errors import InputError
from lacache.evals.hub_documents import load_named_document, validate_named_document
from lacache.evals.tasks.lengths import count_tokens, largest_fitting

NOISE = "noise"
_NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
_MOST = 1 << 20


def sentences(haystack: str, rng: random.Random) -> Callable[[int], list[str]]:
    """As many sentences in a row as are asked for.

    Args:
        haystack: "noise" for the passkey's few sentences again and again, a built-in text such as
            "wikipedia", or a file. A text is begun at a sentence drawn by chance, and is begun
            again where it ends.
        rng: draws that sentence.

    Raises:
        InputError: no such text.
        MissingExtraError: the package that holds a built-in text is not installed.
    """
    found = _NOISE if haystack == NOISE else _sentences(haystack)
    start = 0 if haystack == NOISE else rng.randrange(len(found))
    return lambda count: [found[(start + i) % len(found)] for i in range(count)]


def validate_haystack(haystack: str) -> None:
    """Raise unless there is such a haystack, as far as can be known without the network.

    Raises:
        InputError: no such text.
        MissingExtraError: the package that holds a built-in text is not installed.
    """
    if haystack != NOISE:
        validate_named_document(haystack)


def insert(sentences: list[str], needles: Sequence[str], depths: Sequence[float]) -> str:
    """Sentences with each needle after the given share of them, 0 to 1, joined by spaces.

    Needles at the same place keep their order.
    """
    placed = sorted(
        zip((round(depth * len(sentences)) for depth in depths), needles, strict=True),
        key=lambda pair: pair[0],
    )
    parts: list[str] = []
    start = 0
    for place, needle in placed:
        parts += [*sentences[start:place], needle]
        start = place
    return " ".join([*parts, *sentences[start:]])


def fill(
    tokenizer: Any,
    build: Callable[[int], str],
    *,
    length: int,
    questions: Sequence[str],
    new_tokens: int,
    what: str,
) -> str:
    """The longest context, by sentences, whose prompt and answers fit into a length.

    Args:
        tokenizer: of the model.
        build: makes the context with so many sentences around the needles.
        length: tokens of the context, the questions and the answers.
        questions: their texts.
        new_tokens: tokens of all answers.
        what: the task's name, for the error.

    Raises:
        InputError: the length is too short for the needles alone.
    """
    room = length - new_tokens
    num_sentences = largest_fitting(
        lambda size: count_tokens(tokenizer, build(size), *questions) <= room,
        least=0,
        most=_MOST,
        start=max(0, room // 24),
    )
    if num_sentences is None:
        least = count_tokens(tokenizer, build(0), *questions) + new_tokens
        raise InputError(
            f"length={length} is too short for task {what}, which needs {least} tokens without "
            f"any filler; try length={2 * least}"
        )
    return build(num_sentences)


@cache
def _sentences(haystack: str) -> tuple[str, ...]:
    text = " ".join(load_named_document(haystack).content.split())
    return tuple(re.split(r"(?<=[.!?]) ", text))

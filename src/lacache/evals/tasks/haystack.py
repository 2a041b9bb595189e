"""Filler sentences, and needles between them."""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache

from lacache.evals.hub_documents import load_named_document, validate_named_document

NOISE = "noise"
_NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)


def sentences(haystack: str, rng: random.Random) -> Callable[[int], list[str]]:
    """Return a function that gives the first sentences of a haystack.

    Args:
        haystack: "noise" for the passkey's few sentences repeated, a built-in corpus such as
            "wikipedia", or a text file. A document starts at a random sentence, and is continued
            at its beginning.
        rng: draws that sentence.

    Raises:
        InputError: there is no such document.
        MissingExtraError: the package of a built-in corpus is not installed.
    """
    found = _NOISE if haystack == NOISE else _sentences(haystack)
    start = 0 if haystack == NOISE else rng.randrange(len(found))
    return lambda count: [found[(start + i) % len(found)] for i in range(count)]


def validate_haystack(haystack: str) -> None:
    """Check that a haystack exists, as far as possible without the network.

    Raises:
        InputError: there is no such document.
        MissingExtraError: the package of a built-in corpus is not installed.
    """
    if haystack != NOISE:
        validate_named_document(haystack)


def insert(sentences: list[str], needles: Sequence[str], depths: Sequence[float]) -> str:
    """Join sentences by spaces, with each needle after a share of them, 0 to 1.

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


@cache
def _sentences(haystack: str) -> tuple[str, ...]:
    content = " ".join(load_named_document(haystack).content.split())
    return tuple(re.split(r"(?<=[.!?]) ", content))

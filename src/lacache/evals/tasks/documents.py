"""Documents by name, sentences of them as a haystack, and needles between the sentences."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from lacache.common.packages import require_modules
from lacache.corpora import Document, load_document
from lacache.errors import InputError

_HUB: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "wikitext-2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"}, "\n"),
    "pg19": ("emozilla/pg19-test", {"split": "test"}, "\n\n"),
}
"""By name: data set of the hub, options that load it, and what joins its rows."""

HUB_DOCUMENTS = tuple(_HUB)
"""Names of documents that papers report on, for users who can reach the hub."""

NOISE = "noise"
_NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)


def load_named_document(name: str) -> Document:
    """Load a document of the hub, a built-in one, or a file.

    Raises:
        InputError: there is no such document, or the hub did not deliver it.
        MissingExtraError: a package that it needs is not installed.
    """
    return _from_hub(name) if name in _HUB else load_document(name)


def validate_named_document(name: str) -> None:
    """Check that a document exists, as far as that is known without the network.

    Raises:
        InputError: there is no such document.
        MissingExtraError: a package that it needs is not installed.
    """
    if name in _HUB:
        require_modules("datasets", why=f"text {name!r}", extra="hub")
    else:
        load_document(name)


def _from_hub(name: str) -> Document:
    validate_named_document(name)
    datasets = import_module("datasets")
    path, options, joint = _HUB[name]
    try:
        rows = datasets.load_dataset(path, **options)
        content = joint.join(rows["text"])
    except Exception as error:  # the library raises many kinds, of its own and of others
        raise InputError(
            f"text {name!r} could not be loaded from the hub as {path} "
            f"({' '.join(str(error).split())[:120]}); check the network, or give a local file"
        ) from error
    return Document(
        name=name, source=f"data set {path} of the hub", licence="unknown", content=content
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

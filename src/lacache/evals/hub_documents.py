"""Documents that papers report on, by name, for users who can reach the hub."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lacache.common.packages import require_modules
from lacache.corpora import Document, load_document
from lacache.errors import InputError

_HUB: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "wikitext-2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"}, "\n"),
    "pg19": ("emozilla/pg19-test", {"split": "test"}, "\n\n"),
}
"""By name: data set, options that load it, and what joins its rows."""

HUB_DOCUMENTS = tuple(_HUB)


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
        _require_datasets(name)
    else:
        load_document(name)


def _require_datasets(name: str) -> None:
    require_modules("datasets", why=f"text {name!r}", extra="hub")


def _from_hub(name: str) -> Document:
    _require_datasets(name)
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

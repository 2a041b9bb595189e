"""The texts that papers report, by name, for users who can reach the hub."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lacache.common.packages import require_modules
from lacache.corpora import Text, load_text
from lacache.errors import InputError

_HUB: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "wikitext-2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"}, "\n"),
    "pg19": ("emozilla/pg19-test", {"split": "test"}, "\n\n"),
}
"""Data set, how it is asked for, and what its rows are joined with."""

HUB_TEXTS = tuple(_HUB)


def load_named_text(name: str) -> Text:
    """A text of the hub by name, a built-in one, or a file.

    Raises:
        InputError: there is no such text, or it could not be had.
        MissingExtraError: a package that it needs is not installed.
    """
    return _from_hub(name) if name in _HUB else load_text(name)


def validate_named_text(name: str) -> None:
    """Raise unless there is such a text, as far as can be known without the network.

    Raises:
        InputError: there is no such text.
        MissingExtraError: a package that it needs is not installed.
    """
    if name in _HUB:
        _require_datasets(name)
    else:
        load_text(name)


def _require_datasets(name: str) -> None:
    require_modules("datasets", why=f"text {name!r}", extra="hub")


def _from_hub(name: str) -> Text:
    _require_datasets(name)
    datasets = import_module("datasets")
    path, options, joint = _HUB[name]
    try:
        rows = datasets.load_dataset(path, **options)
        content = joint.join(rows["text"])
    except Exception as error:  # the library raises many kinds, of its own and of others
        raise InputError(
            f"text {name!r} could not be had from the hub as {path} "
            f"({' '.join(str(error).split())[:120]}); check the network, or give a local file"
        ) from error
    return Text(name=name, source=f"data set {path} of the hub", licence="unknown", content=content)

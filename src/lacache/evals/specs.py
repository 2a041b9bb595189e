"""Tasks as text, `NAME` or `NAME:key=value:key=value`, in the form of policies."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any, TypeVar

from lacache.common.records import Record
from lacache.common.settings_text import parse_settings
from lacache.errors import ConfigError

Made = TypeVar("Made")


def split_list(lists: Iterable[str]) -> list[str]:
    """Split lists at commas and semicolons into the items of one list."""
    items = (item.strip() for text in lists for item in text.replace(";", ",").split(","))
    return list(filter(None, items))


def parse_spec(text: str, table: Mapping[str, Callable[..., Made]], what: str) -> Made:
    """Make what a text stands for. A text value may hold colons, as `ppl:text=wikipedia:Algae`.

    Args:
        text: the spec.
        table: by name, frozen dataclasses whose fields are the settings.
        what: what the table holds, for errors.

    Raises:
        ConfigError: no such name or setting, or a value that does not fit.
    """
    name, _, settings = text.strip().partition(":")
    if name not in table:
        near = [*get_close_matches(name, table, n=1), *table][0]
        raise ConfigError(f"{what} {name!r} must be one of {', '.join(table)}; try {near}")
    given = parse_settings(what, name, table[name], settings, with_colons=True)
    return table[name](**given)


def settings_record(name: str, made: Any) -> Record:
    """Return a name and the fields of a frozen dataclass, as JSON holds them."""
    return {"name": name, **asdict(made)}

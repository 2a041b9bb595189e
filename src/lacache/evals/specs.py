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
        raise ConfigError(
            f"{what} {name!r} must be one of {_list_for(name, table)}; try {_nearest(name, table)}"
        )
    given = parse_settings(what, name, table[name], settings, with_colons=True)
    return table[name](**given)


def settings_record(name: str, made: Any) -> Record:
    """Return a name and the fields of a frozen dataclass, as JSON holds them."""
    return {"name": name, **asdict(made)}


def _list_for(wrong: str, names: Iterable[str]) -> str:
    """Return names for an error: of a large family with a common start, only those asked for."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.partition("-")[0], []).append(name)
    asked = families.get(wrong.partition("-")[0])
    if asked:
        return ", ".join(asked)
    return ", ".join(
        ", ".join(members)
        if len(members) < 5
        else f"{family}-NAME ({len(members)}; {family!r} lists them)"
        for family, members in families.items()
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return up to three names like a wrong one, else the first name."""
    known = list(names)
    near = get_close_matches(name, known) or [n for n in known if name in n][:3]
    return " or ".join(near or known[:1])

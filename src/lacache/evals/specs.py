"""Tasks as text, `NAME` or `NAME:key=value:key=value`, in the form of policies."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from lacache.common.records import Record
from lacache.errors import ConfigError

Made = TypeVar("Made")

_KINDS = {int: ("a whole number", "1"), float: ("a number", "0.5")}


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
    make: Any = table[name]
    types = {f.name: get_type_hints(make)[f.name] for f in fields(make) if f.init}
    texts: dict[str, str] = {}
    last = ""
    for part in settings.split(":") if settings else ():
        key, equals, value = part.partition("=")
        if key not in types and last and str in _accepted(types[last]):
            texts[last] += f":{part}"
            continue
        if key not in types:
            known = f"has {', '.join(types)}" if types else "has no settings"
            raise ConfigError(f"{what} {name} has no setting {key!r}; it {known}")
        if not equals:
            raise ConfigError(f"setting {key!r} of {what} {name} has no value; try {key}=VALUE")
        if key in texts:
            raise ConfigError(f"{what} {name} was given {key} twice; give it once")
        texts[key] = value
        last = key
    needed = [f.name for f in fields(make) if f.init and f.default is MISSING]
    missing = [key for key in needed if key not in texts]
    if missing:
        example = ":".join(f"{key}=VALUE" for key in needed)
        raise ConfigError(f"{what} {name} needs {', '.join(missing)}; try {name}:{example}")
    made: Made = make(**{key: _value(key, value, types[key]) for key, value in texts.items()})
    return made


def format_spec(name: str, made: Any) -> str:
    """Return the shortest spec that makes `made`, a frozen dataclass, without its defaults."""
    parts = [
        f"{field.name}={str(value).lower() if value is None else value}"
        for field in fields(made)
        if field.init and (value := getattr(made, field.name)) != field.default
    ]
    return ":".join([name, *parts])


def settings_record(name: str, made: Any) -> Record:
    """Return a name and the fields of a frozen dataclass, as JSON holds them."""
    return {"name": name, **asdict(made)}


def _accepted(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) or (kind,)


def _value(key: str, text: str, kind: Any) -> Any:
    accepted = _accepted(kind)
    if NoneType in accepted and text.lower() == "none":
        return None
    number = next((number for number in _KINDS if number in accepted), None)
    if number is None:
        return text
    try:
        return number(text)
    except ValueError:
        wanted, example = _KINDS[number]
        raise ConfigError(f"{key}={text} must be {wanted}; try {key}={example}") from None

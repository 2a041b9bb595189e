"""Names with settings as a user writes them: `ladder:span=15,recent=0.5`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from lacache.errors import ConfigError

Made = TypeVar("Made")


def split_specs(texts: Iterable[str]) -> list[str]:
    """The single specs in texts that hold one or several, between `;` or `,`.

    A comma ends a spec unless a setting (`key=value`) follows it.
    """
    found: list[str] = []
    for text in texts:
        for group in text.split(";"):
            fresh = True
            for part in group.split(","):
                name, equals, _ = part.partition("=")
                is_setting = bool(equals) and ":" not in name
                if is_setting and not fresh:
                    found[-1] += f",{part.strip()}"
                elif part.strip():
                    found.append(part.strip())
                    fresh = False
    return found


def parse_spec(text: str, table: Mapping[str, Callable[..., Made]], what: str) -> Made:
    """Make what `NAME` or `NAME:key=value,key=value` says.

    Numbers, texts and true or false are written as they are, nothing as `none`, several numbers
    as `0-4+9`.

    Args:
        text: the spec.
        table: by name, frozen dataclasses whose fields are the settings.
        what: what the table holds, for errors.

    Raises:
        ConfigError: no such name or setting, or a value that does not fit.
    """
    name, _, settings = text.strip().partition(":")
    if name not in table:
        known = ", ".join(table)
        near = [*get_close_matches(name, table, n=1), *table][0]
        raise ConfigError(f"{what} {name!r} must be one of {known}; try {near}")
    make = table[name]
    types = _settings(make)
    given: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in types:
            known = f"has {', '.join(types)}" if types else "has no settings"
            raise ConfigError(f"{what} {name} has no setting {key!r}; it {known}")
        if not equals:
            raise ConfigError(f"setting {part!r} of {what} {name} has no value; try {key}=VALUE")
        if key in given:
            raise ConfigError(f"{what} {name} was given {key} twice; give it once")
        given[key] = _value(key, value, types[key])
    needed = [field.name for field in fields(make) if _is_needed(field)]  # type: ignore[arg-type]
    missing = [name for name in needed if name not in given]
    if missing:
        example = ",".join(f"{key}=VALUE" for key in needed)
        raise ConfigError(f"{what} {name} needs {', '.join(missing)}; try {name}:{example}")
    return make(**given)


def format_spec(name: str, made: Any) -> str:
    """The shortest spec that makes `made`, a frozen dataclass: settings at their default go."""
    parts = [
        f"{field.name}={_text(value)}"
        for field in fields(made)
        if field.init and (value := getattr(made, field.name)) != field.default
    ]
    return name + (f":{','.join(parts)}" if parts else "")


def _is_needed(field: Field[Any]) -> bool:
    return field.init and field.default is MISSING and field.default_factory is MISSING


def _settings(make: Any) -> dict[str, Any]:
    types = get_type_hints(make)
    return {field.name: types[field.name] for field in fields(make) if field.init}


def _value(key: str, text: str, kind: Any) -> Any:
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if NoneType in kinds and text.lower() == "none":
        return None
    if tuple[int, ...] in kinds:
        return _numbers(key, text)
    if bool in kinds:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key}={text} must be true or false; try {key}=true")
        return text.lower() == "true"
    for number, told, example in ((int, "a whole number", "1"), (float, "a number", "0.5")):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                if float in kinds and number is int:
                    continue
                raise ConfigError(f"{key}={text} must be {told}; try {key}={example}") from None
    return text


def _numbers(key: str, text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in filter(None, text.split("+")):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"{key}={text} must be whole numbers and runs of them between +, and "
                f"{part.strip()!r} is neither; try {key}=0-4+9"
            )
        numbers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(numbers)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)

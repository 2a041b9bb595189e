"""Settings of frozen dataclasses as text, `key=value:key=value`, for policies and tasks."""

import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from lacache.errors import ConfigError


def parse_settings(
    what: str, name: str, kind: Callable[..., Any], text: str, *, with_colons: bool = False
) -> dict[str, Any]:
    """Return the fields of a dataclass that a text gives, as its constructor takes them.

    A value is read by the `parse` of its field's metadata, else by the field's type. The metadata
    may have an `example` for errors.

    Args:
        what: a noun for errors, such as "policy".
        name: of the dataclass, as users write it.
        kind: the dataclass.
        text: its settings.
        with_colons: values that are text may hold colons, as `text=wikipedia:Algae` does.

    Raises:
        ConfigError: no such setting, one that is missing, or a value that cannot be read.
    """
    known = {f.name: f for f in fields(kind) if f.init}  # type: ignore[arg-type]
    types = {key: get_type_hints(kind)[key] for key in known}
    owner = f"{what} {name!r}"
    texts: dict[str, str] = {}
    last = ""
    for part in text.split(":") if text else ():
        key, equals, value = part.partition("=")
        if key not in known and with_colons and last and str in _accepted(types[last]):
            texts[last] += f":{part}"
            continue
        if key not in known:
            raise ConfigError(f"{owner} has no setting {key!r}; use {', '.join(known) or 'none'}")
        if not equals:
            raise ConfigError(f"setting {key!r} of {owner} has no value; write {key}=VALUE")
        if key in texts:
            raise ConfigError(f"setting {key!r} of {owner} is given twice; give it once")
        texts[key], last = value, key
    missing = [key for key, each in known.items() if each.default is MISSING and key not in texts]
    if missing:
        settings = ":".join(f"{key}=VALUE" for key in missing)
        raise ConfigError(f"{owner} needs {', '.join(missing)}; write {name}:{settings}")
    return {key: _parse_value(owner, known[key], types[key], given) for key, given in texts.items()}


def format_settings(name: str, made: Any) -> str:
    """Return the shortest text that makes `made`, a frozen dataclass, without its defaults."""
    parts = [
        f"{field.name}={'none' if value is None else value}"
        for field in fields(made)
        if field.init and (value := getattr(made, field.name)) != field.default
    ]
    return ":".join([name, *parts])


def _accepted(type_: Any) -> set[Any]:
    return set(get_args(type_)) or {type_}


def _parse_value(owner: str, setting: "Field[Any]", type_: Any, text: str) -> Any:
    if not text:
        raise ConfigError(
            f"setting {setting.name!r} of {owner} has no value; write {setting.name}=VALUE"
        )
    accepted = _accepted(type_)
    try:
        if "parse" in setting.metadata:
            return setting.metadata["parse"](text)
        if NoneType in accepted and text.lower() == "none":
            return None
        if str in accepted:
            return text
        # A float takes whole numbers too, and keeps them whole: slots are no share.
        if re.fullmatch("-?[0-9]+", text):
            return int(text)
        if int in accepted or not text.isascii() or "_" in text:
            raise ValueError
        return float(text)
    except ValueError as error:
        example = setting.metadata.get("example") or ("4" if int in accepted else "0.1")
        remedy = f"try {setting.name}={example}"
        if "," in text:
            remedy = "separate settings by colons, such as ladder:span=15:overlap=0"
        raise ConfigError(f"{setting.name}={text} of {owner} cannot be read; {remedy}") from error

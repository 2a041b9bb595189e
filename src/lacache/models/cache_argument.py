"""By which name a model takes its cache: transformers says `cache` from 5.24 on."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

_NEW, _OLD = "cache", "past_key_values"


def cache_name(model: Any) -> str:
    """What a model or decoder, and its `generate`, calls its cache."""
    return _NEW if _NEW in signature(model.forward).parameters else _OLD


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """The cache as a keyword argument, for a call."""
    return {cache_name(model): cache}


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call by either name, or None."""
    cache = arguments.get(_NEW)
    return arguments.get(_OLD) if cache is None else cache

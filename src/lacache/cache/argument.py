"""By which name a model takes its cache: transformers says `cache` from 5.24 on."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

_NEW, _OLD = "cache", "past_key_values"


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """The cache as a keyword argument, for a call of a model or decoder, or of its `generate`."""
    return {_NEW if _NEW in signature(model.forward).parameters else _OLD: cache}


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call by either name, or None."""
    return arguments.get(_NEW, arguments.get(_OLD))

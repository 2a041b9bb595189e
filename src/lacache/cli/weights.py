"""The option --weights: what becomes of a model's weights, when it is loaded and in the engine."""

from dataclasses import dataclass
from typing import Self, final

from lacache.common.validation import validate_weights
from lacache.errors import ConfigError
from lacache.models import is_converted, validate_packing

_IN_ENGINE = ("int8",)
_AT_LOADING = ("file", "int4")


@final
@dataclass(frozen=True)
class Weights:
    """The conversions of weights that were given.

    Args:
        at_loading: for `load_model`.
        in_engine: for `Engine`.
    """

    at_loading: str | None
    in_engine: str | None

    @classmethod
    def parse(cls, given: str | None, model: str | None) -> Self:
        """Parse the option; by default the weights of GGUF files stay as they are.

        Raises:
            ConfigError: there are no such weights, or not of this model.
            MissingExtraError: they need a package that is not installed.
        """
        if given is None:
            return cls("file" if is_converted(model) else None, None)
        if given == "model":
            return cls(None, None)
        if given in _AT_LOADING:
            validate_packing(model, given)
            return cls(given, None)
        if given in _IN_ENGINE:
            validate_weights(given)
            return cls(None, given)
        names = ", ".join(("model", *_AT_LOADING, *_IN_ENGINE))
        raise ConfigError(f"weights={given!r} must be one of {names}; try --weights int8")

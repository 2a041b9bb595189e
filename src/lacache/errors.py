"""Errors and warnings that a user can cause. Messages give the value, the rule and the remedy."""

from typing import final


class LaCacheError(Exception):
    """Base of all errors raised on purpose by this package."""


@final
class ConfigError(LaCacheError, ValueError):
    """A configuration that cannot work."""


@final
class InputError(LaCacheError, ValueError):
    """A prompt, text or file that cannot be used."""


class ModelError(LaCacheError):
    """A model that is missing, damaged or not a causal language model."""


@final
class UnsupportedModelError(ModelError):
    """A model whose attention or positions this package does not understand."""


@final
class NoDistantTokensError(ModelError):
    """A model that makes no use of distant tokens, so that it has no retrieval heads."""


@final
class UnsupportedOperationError(LaCacheError):
    """An operation that a bounded cache cannot carry out exactly."""


@final
class CompilerError(LaCacheError):
    """A C++ compiler that is missing, or that fails."""


@final
class MissingExtraError(LaCacheError, ImportError):
    """An optional dependency that is not installed."""


@final
class HeadProfileWarning(UserWarning):
    """A policy that needs a head profile, for a model whose weights have none.

    Issued once for a model. `lacache.calibrate(model, tokenizer)` measures the profile.
    """

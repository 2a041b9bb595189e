"""What a method is: a way to bound a cache that the harness can run and record."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lacache.cache import HookedCache
from lacache.common.records import Record


class Method(ABC):
    """A way to bound a cache. Subclasses are frozen dataclasses; their fields are the settings."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        """An empty cache.

        Args:
            model: a causal language model of transformers.
            capacity: tokens per layer, averaged over layers and KV heads; a hard cap on the bytes
                that the cache ever holds (the full cache alone ignores it).
            dense: read the first input with a full cache and compact it then, instead of
                compacting on the way.

        Raises:
            ConfigError: the settings cannot work with this capacity or model.
            UnsupportedModelError: the model's caches or positions are not understood.
        """

    @abstractmethod
    def record(self) -> Record:
        """Name and settings, as plain JSON."""

    def inputs_sha256(self, model: Any) -> str:
        """SHA-256 of what it depends on besides its settings, such as a model's profile."""
        return ""

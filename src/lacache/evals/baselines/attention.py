"""Attention weights from a model, by ordinary torch forward hooks.

For the duration of a forward with a cache that wants them, the decoder's implementation of
attention is transformers' eager one, whose modules return their weights. Each module's weights go
to the cache at once, so no more than one layer's are ever held.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lacache.cache import HookedCache
from lacache.errors import UnsupportedModelError


class MonitoredCache(HookedCache, ABC):
    """A cache that may need attention weights."""

    def __init__(self, layers: list[Any], kv_dtype: str | None = None) -> None:
        super().__init__(layers, kv_dtype)
        self.replaced: str | None = None
        """The implementation of attention to go back to after the forward that is running."""

    @property
    @abstractmethod
    def wants_weights(self) -> bool:
        """Whether the forward that is open runs on the eager implementation."""

    @abstractmethod
    def observe(self, layer_idx: int, weights: Tensor | None) -> None:
        """Record the attention of the new tokens [1, Hq, Q, N] in a layer."""


def install_attention_hooks(decoder: Any) -> None:
    """Install the hooks on a decoder, once. They act on calls with a monitored cache only.

    Raises:
        UnsupportedModelError: the model does not declare which modules return attention weights.
    """
    if _to_eager in decoder._forward_pre_hooks.values():
        return
    modules = _attention_modules(decoder)
    decoder.register_forward_pre_hook(_to_eager, with_kwargs=True)
    # Even after an error, or the model would stay on the eager implementation.
    decoder.register_forward_hook(_from_eager, with_kwargs=True, always_call=True)
    for module in modules:
        module.register_forward_hook(_after_attention, with_kwargs=True)


def _attention_modules(decoder: Any) -> list[nn.Module]:
    """Return the attention modules of a decoder, as transformers itself finds them."""
    kind: Any = decoder.can_record_outputs.get("attentions")
    if not isinstance(kind, type):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} does not declare which of its modules return attention "
            "weights; use a score of keys, such as KeyDiff"
        )
    modules: Iterable[nn.Module] = decoder.modules()
    return [module for module in modules if isinstance(module, kind)]


def _monitored(values: Iterable[Any]) -> MonitoredCache | None:
    """Return the cache among the arguments of a call; models name it in more than one way."""
    found = next((value for value in values if isinstance(value, MonitoredCache)), None)
    return found if found is not None and found.wants_weights else None


def _to_eager(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache = _monitored(kwargs.values())
    if cache is not None:
        cache.replaced = decoder.config._attn_implementation
        decoder.set_attn_implementation("eager")


def _from_eager(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    cache = _monitored(kwargs.values())
    if cache is not None and cache.replaced is not None:
        decoder.set_attn_implementation(cache.replaced)
        cache.replaced = None


def _after_attention(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    cache = _monitored(kwargs.values())
    if cache is not None:
        cache.observe(module.layer_idx, output[1])

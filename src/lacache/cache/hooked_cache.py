"""The base of caches whose forwards pass through the hooks of `lacache.cache.hooks`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lacache.cache.report import CacheReport
from lacache.common.validation import validate_kv_dtype
from lacache.errors import InputError, ModelError
from lacache.models.decoder import cache_argument, find_decoder


class HookedCache(Cache, ABC):
    """A cache that prefills in chunks, with every forward bracketed by `begin` and `commit`.

    `install_hooks` makes the decoder call these methods. `prefill` runs whole prompts.

    Args:
        layers: of transformers, one for each layer of the model.
        kv_dtype: what keys and values of growing layers are stored in; None is the model's type.

    Raises:
        ConfigError: there is no such kv_dtype.
    """

    def __init__(self, layers: list[Any], kv_dtype: str | None = None) -> None:
        validate_kv_dtype(kv_dtype)
        super().__init__(layers=layers)
        self.kv_dtype = kv_dtype
        """What keys and values of growing layers are stored in; None is the model's type."""
        self.earlier_hidden: list[Tensor] = []
        """Outputs [B, Q, hidden] of the earlier chunks of the call that is running."""

    @abstractmethod
    def report(self) -> CacheReport:
        """Return the cache's counts of tokens, and its bytes."""

    @abstractmethod
    def expect_prompt(self, num_tokens: int) -> None:
        """Note the length of the first prompt, for a budget that is a share of it."""

    @abstractmethod
    def next_chunk(self, num_tokens: int) -> int:
        """Return how many of `num_tokens` new tokens the next forward may take."""

    @abstractmethod
    def validate_decoder(self, decoder: nn.Module) -> None:
        """Raise ModelError unless the cache was made for this decoder."""

    @abstractmethod
    def validate_input(self, first_position: int | None, batch_size: int) -> None:
        """Raise InputError unless the input continues the cached sequences."""

    @abstractmethod
    def next_positions(self, num_new: int) -> Tensor:
        """Return the position ids [Q] of the next forward, which replace the caller's."""

    @abstractmethod
    def begin(self, num_new: int) -> None:
        """Open a forward of `num_new` tokens, and compact if a compaction is due."""

    @abstractmethod
    def commit(self) -> None:
        """Close the forward: count its tokens."""

    def key_lengths(self, layer_idx: int) -> tuple[int, ...] | None:
        """Return the number of keys in the open forward, for each KV head or one for all.

        None where all layers hold equally many, so that the model's own mask fits.
        """
        return None

    @torch.no_grad()
    def prefill(
        self,
        model: Any,
        input_ids: Tensor,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Run new tokens through the model in chunks, compacting in between, in bounded memory.

        Args:
            model: the model that the cache was made for.
            input_ids: new tokens [B, Q], Q >= 1, without those that the cache has seen.
            on_progress: called with the number of tokens of each finished chunk.

        Returns:
            The last token's logits [B, V].

        Raises:
            InputError: no tokens, not a 2D tensor, or ids outside of the vocabulary.
            ModelError: another model than the cache's, or one without a language-model head.
        """
        self._validate_prefill(model, input_ids)
        parameters = signature(model.forward).parameters
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        num_tokens = input_ids.shape[1]
        self.expect_prompt(num_tokens)
        start = 0
        while start < num_tokens:
            length = self.next_chunk(num_tokens - start)
            output = model(
                input_ids=input_ids[:, start : start + length],
                **cache_argument(model, self),
                use_cache=True,
                **last_only,
            )
            start += length
            if on_progress is not None:
                on_progress(length)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _validate_prefill(self, model: Any, input_ids: Any) -> None:
        if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.shape[1] == 0:
            is_tensor = isinstance(input_ids, Tensor)
            given = tuple(input_ids.shape) if is_tensor else type(input_ids).__name__
            raise InputError(
                f"input_ids of shape {given} must be a tensor [batch, tokens >= 1]; with a "
                "tokenizer: tokenizer(text, return_tensors='pt').input_ids"
            )
        self.validate_decoder(find_decoder(model))
        if model.get_output_embeddings() is None:
            raise ModelError(
                f"{type(model).__name__} has no language-model head; load it with "
                "AutoModelForCausalLM.from_pretrained"
            )
        if input_ids.dtype not in (torch.long, torch.int):
            raise InputError(f"input_ids of type {input_ids.dtype} must be integers; use .long()")
        least, most = int(input_ids.min()), int(input_ids.max())
        vocab_size = model.config.get_text_config(decoder=True).vocab_size
        if not 0 <= least <= most < vocab_size:
            raise InputError(
                f"token ids from {least} to {most} must lie in 0 to {vocab_size - 1}; use the "
                "tokenizer of this model"
            )

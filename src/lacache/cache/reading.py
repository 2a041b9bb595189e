"""A cache that reads a text of any length by itself, piece by piece."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from lacache.cache.guard import GuardedCache
from lacache.cache.report import CacheReport
from lacache.errors import InputError, ModelError
from lacache.models.decoder import cache_argument, find_decoder


class ReadingCache(GuardedCache, ABC):
    """A guarded cache that knows how to read and what it holds."""

    @abstractmethod
    def report(self) -> CacheReport:
        """Where the cache stands."""

    @torch.no_grad()
    def prefill(
        self,
        model: Any,
        input_ids: Tensor,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Read new tokens, compacting on the way, in bounded memory.

        Args:
            model: the model that the cache was made from.
            input_ids: new tokens [B, Q], Q >= 1; what was read before is not given again.
            on_progress: called with the number of tokens after each piece.

        Returns:
            The last token's logits [B, V].

        Raises:
            InputError: no tokens, or not a 2D tensor.
            ModelError: another model than the cache's, or one without a language-model head.
        """
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
        takes = signature(model.forward).parameters
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        num_tokens = input_ids.shape[1]
        self.resolve(num_tokens)
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

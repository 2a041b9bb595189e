"""Dense passes over prompts, computed once and given to the cache of every policy and budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lacache.evals.baselines.attention_policies import AttentionPolicy
from lacache.evals.monitor import CacheMonitor
from lacache.evals.policies import open_cache
from lacache.evals.runs import RunSpec
from lacache.models.model_info import model_info
from lacache.policies import Full, Policy

MOST_BYTES = 2 << 30
"""Bytes of dense passes that are held at once."""


@final
@dataclass(frozen=True)
class DensePass:
    """The keys, values and last logits of one forward over a prompt, for any cache to take."""

    layers: Sequence[tuple[int, Tensor, Tensor]]
    """Index, keys [1, Hkv, N, D] as the model gave them, and values of each layer, in order."""
    logits: Tensor
    """The last token's [1, V]."""
    num_tokens: int


def shares_dense_pass(model: Any, policy: Policy) -> bool:
    """Return whether a cache can take a dense pass that another has computed.

    Policies that score by attention weights need the forward itself. So do native layers (sliding,
    linear), which keep more than keys and values. Where rotations depend on the length, only a
    bounded cache is possible.
    """
    info = model_info(model)
    needs_own = info.has_native or info.fixed_length is not None
    return not (isinstance(policy, AttentionPolicy) or needs_own)


@final
class DensePasses:
    """The dense passes over the prompts that are measured now, by token ids and `kv_dtype`.

    Args:
        model: a causal language model of transformers.
        most_bytes: bytes of the passes that are held at once. For a prompt whose pass does not fit,
            each cache runs its own forward, which holds one layer's keys and values at a time.
    """

    def __init__(self, model: Any, *, most_bytes: int = MOST_BYTES) -> None:
        self._model = model
        self._most_bytes = most_bytes
        self.clear()

    def clear(self) -> None:
        """Remove all passes, as other prompts follow."""
        self._passes: dict[tuple[tuple[int, ...], str | None], DensePass] = {}
        self._num_bytes = 0

    def prefill(self, monitor: CacheMonitor, ids: Sequence[int]) -> Tensor:
        """Give an empty cache its first input as one chunk, and return the last logits [1, V].

        The cache holds what its own forward would have left, and the monitor has counted the same.
        """
        key = (tuple(ids), monitor.cache.kv_dtype)
        found = self._passes.get(key)
        if found is None:
            num_bytes = len(ids) * model_info(self._model).bytes_per_token
            if self._num_bytes + num_bytes > self._most_bytes:
                inputs = torch.tensor([list(ids)], device=self._model.device)
                return monitor.cache.prefill(self._model, inputs)
            found = compute_dense_pass(self._model, ids, monitor.cache.kv_dtype)
            self._passes[key] = found
            self._num_bytes += num_bytes
        monitor.take(found.layers, found.num_tokens)
        return found.logits


@torch.no_grad()
def compute_dense_pass(model: Any, ids: Sequence[int], kv_dtype: str | None = None) -> DensePass:
    """Run a prompt through the model with a full cache, and record what the cache is given.

    Args:
        model: a causal language model of transformers.
        ids: the prompt.
        kv_dtype: what keys and values are stored in, and so attended to; None is the model's type.
    """
    cache = open_cache(model, Full(), 0, kv_dtype=kv_dtype)
    layers: list[tuple[int, Tensor, Tensor]] = []
    update = cache.update

    def recorded(keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **more: Any) -> Any:
        layers.append((layer_idx, keys, values))
        return update(keys, values, layer_idx, *args, **more)

    cache.update = recorded  # type: ignore[assignment]
    logits = cache.prefill(model, torch.tensor([list(ids)], device=model.device))
    return DensePass(layers, logits, len(ids))


def prefill_tokens(specs: Iterable[RunSpec]) -> int:
    """Return about how many tokens runs prefill, if those of the same samples share dense passes.

    Without the model it is not known whether it has native layers, which share none.
    """
    total = 0
    shared: set[object] = set()
    for spec in specs:
        if isinstance(spec.policy, AttentionPolicy) or not (spec.protocol.is_dense or spec.is_full):
            total += spec.tokens
            continue
        # The compacted cache gets the last token, so that the pass ends before it.
        whole = spec.is_full or spec.protocol.first_token == "dense"
        inputs = (spec.task, spec.length, spec.count, spec.seed, spec.kv_dtype, whole)
        total += 0 if inputs in shared else spec.tokens
        shared.add(inputs)
    return total

"""Monitor a cache that uses its budget to the last byte."""

import pytest
import torch

from lacache.cache import LaCache
from lacache.cache.encoded import bytes_per_token
from lacache.common.validation import KV_DTYPES
from lacache.evals.monitor import CacheMonitor, ProtocolError
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.policies import RetrievalHeads
from tests.cache.tiny_models import random_ids, tiny_model


@pytest.mark.parametrize("kv_dtype", [None, *sorted(KV_DTYPES)])
@pytest.mark.parametrize("capacity", range(20, 60, 9))
def test_the_last_byte_is_allowed_and_one_token_more_is_not(
    capacity: int, kv_dtype: str | None
) -> None:
    model = tiny_model("llama")
    heads = model_info(model).num_heads
    history = tuple((layer, 0) for layer in range(len(heads) - 1))
    cache = LaCache(
        model, capacity, RetrievalHeads(heads=(history,), window=0.4), kv_dtype=kv_dtype
    )
    ids = random_ids(4 * capacity)
    with torch.no_grad(), CacheMonitor(model, cache, capacity=capacity).monitoring() as monitor:
        model(ids, **cache_argument(model, cache))
    allowed = capacity * bytes_per_token(model_info(model), kv_dtype)
    assert 0.9 * allowed < monitor.peak_bytes <= allowed
    cache.reset()
    less = CacheMonitor(model, cache, capacity=capacity - 1)
    with torch.no_grad(), pytest.raises(ProtocolError, match="mend the policy"), less.monitoring():
        model(ids, **cache_argument(model, cache))


@pytest.mark.parametrize("kv_dtype", [None, *sorted(KV_DTYPES)])
def test_bytes_are_those_of_the_tokens_as_they_are_stored(kv_dtype: str | None) -> None:
    model = tiny_model("gemma3")
    cache = LaCache(model, 16, "streaming", kv_dtype=kv_dtype)
    monitor = CacheMonitor(model, cache, capacity=16)
    with monitor.monitoring():
        cache.prefill(model, random_ids(60))
    per_token = bytes_per_token(model_info(model), kv_dtype)
    sliding = 3 * 7 * 2 * 2 * 8 * 4  # layers, tokens that the next one sees, K and V, heads, size
    assert monitor.full_bytes == 60 * per_token + sliding
    assert monitor.peak_bytes == 16 * per_token + sliding
    assert monitor.trace[-1][2] == cache.report().bytes

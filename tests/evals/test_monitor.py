"""Monitor a cache that uses its budget to the last byte."""

import pytest
import torch

from lacache.cache import LaCache
from lacache.evals.monitor import CacheMonitor, ProtocolError
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.policies import RetrievalHeads
from tests.cache.tiny_models import random_ids, tiny_model


@pytest.mark.parametrize("capacity", range(20, 60, 9))
def test_the_last_byte_is_allowed_and_one_token_more_is_not(capacity: int) -> None:
    model = tiny_model("llama")
    heads = model_info(model).num_heads
    history = tuple((layer, 0) for layer in range(len(heads) - 1))
    cache = LaCache(model, capacity, RetrievalHeads(heads=(history,), window=0.4))
    ids = random_ids(4 * capacity)
    with torch.no_grad(), CacheMonitor(model, cache, capacity=capacity).monitoring() as monitor:
        model(ids, **cache_argument(model, cache))
    allowed = capacity * model_info(model).bytes_per_token
    assert 0.9 * allowed < monitor.peak_bytes <= allowed
    cache.reset()
    less = CacheMonitor(model, cache, capacity=capacity - 1)
    with torch.no_grad(), pytest.raises(ProtocolError, match="mend the policy"), less.monitoring():
        model(ids, **cache_argument(model, cache))

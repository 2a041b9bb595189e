"""Who keeps a history, by profile and by depth."""

import pytest

from lacache.cache import LaCache
from lacache.errors import ConfigError
from lacache.evals.methods.history import History
from lacache.policies import RetrievalHeads
from lacache.policies.head_profile import layers_by_depth
from tests.cache.tiny_models import random_ids, tiny_model


def test_by_depth_no_profile_is_needed() -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match="has no profile; run lacache calibrate first"):
        History().open(model, capacity=40, dense=False)
    by_depth = History(members="depth", share=0.4, most=0.6, window=0.5)
    cache = by_depth.open(model, capacity=40, dense=False)
    assert isinstance(cache, LaCache)
    assert isinstance(cache.policy, RetrievalHeads)
    order = layers_by_depth(5)
    assert (cache.policy.history, cache.policy.tiers) == (order[:2], (order[2:3],))
    cache.prefill(model, random_ids(60))
    assert len(cache.kept_tokens(order[0])) == 60
    assert len(cache.kept_tokens(order[-1])) <= 20


def test_what_the_history_is_chosen_by_is_checked() -> None:
    with pytest.raises(ConfigError, match="members='all' must be heads, layers or depth"):
        History(members="all")

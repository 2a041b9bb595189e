"""The baselines as policies, and their caches as the harness opens them."""

from typing import Any

import pytest
import torch

from lacache.common.validation import KV_DTYPES
from lacache.errors import ConfigError
from lacache.evals.baselines import BASELINES, ScoredCache
from lacache.evals.policies import open_cache, parse_eval_policy
from lacache.evals.provenance import policy_record
from lacache.policies import ModelShape, parse_policy, policy_names
from tests.cache.tiny_models import random_ids, tiny_model

SCORED = ("keydiff", "knorm", "lagkv", "tova", "h2o", "snapkv")
BY_LAYER = "pyramidkv"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("name", [*SCORED, BY_LAYER, "random-ladder"])
def test_text_and_record_make_the_policy_again(name: str) -> None:
    policy = parse_eval_policy(f"{name}:sinks=2:evict_batch=0.25")
    assert parse_eval_policy(str(policy)) == policy
    record = policy_record(policy)
    assert record.pop("name") == name
    assert record["sinks"] == 2
    assert policy_names(BASELINES)[name][0](**record) == policy


def test_the_product_does_not_know_the_baselines() -> None:
    for name in policy_names(BASELINES):
        with pytest.raises(ConfigError, match="must be one of"):
            parse_policy(name)


@pytest.mark.parametrize("name", [*SCORED, BY_LAYER])
def test_a_score_has_no_schedule(name: str) -> None:
    with pytest.raises(ConfigError, match=f"policy {name} is a baseline"):
        parse_eval_policy(name).bind(ModelShape.of_layers(5), 64)


@pytest.mark.parametrize("kv_dtype", [None, *sorted(KV_DTYPES)])
@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("dense", [False, True])
def test_as_many_bytes_as_the_sink_window_at_every_moment(
    model: Any, name: str, dense: bool, kv_dtype: str | None
) -> None:
    ids = random_ids(150)
    held = []
    for spec in (name, "streaming"):
        cache = open_cache(model, parse_eval_policy(spec), 60, dense=dense, kv_dtype=kv_dtype)
        reports = []
        for piece in ids.split(9 if not dense else 101, dim=1):
            cache.prefill(model, piece)
            reports.append(cache.report())
        held.append([(r.num_seen, r.num_cached, r.bytes, r.compactions) for r in reports])
        assert max(r.num_cached for r in reports) <= 60
    assert held[0] == held[1]


@pytest.mark.parametrize("dense", [False, True])
def test_a_pyramid_never_holds_more_bytes_in_all(model: Any, dense: bool) -> None:
    per_token = 5 * 2 * 2 * 8 * 4
    cache = open_cache(model, parse_eval_policy(BY_LAYER), 64, dense=dense)
    for piece in random_ids(300).split(100 if dense else 7, dim=1):
        cache.prefill(model, piece)
        assert cache.report().bytes <= 64 * per_token
    assert cache.report().capacity == 64
    assert isinstance(cache, ScoredCache)
    stored = [len(cache.kept_tokens(i, 0)) for i in range(5)]
    assert stored == sorted(stored, reverse=True)
    assert stored[0] > stored[-1]


@pytest.mark.parametrize("dense", [False, True])
def test_random_ladders_hold_as_many_bytes_as_the_ladder(model: Any, dense: bool) -> None:
    ids = random_ids(150)
    reports = {}
    for spec in ("ladder:span=2", "random-ladder:span=2", "random-ladder:span=2:seed=1"):
        cache = open_cache(model, parse_eval_policy(spec), 40, dense=dense)
        logits = cache.prefill(model, ids)
        reports[spec] = cache.report(), logits
    (ladder, _), (first, a), (second, b) = reports.values()
    assert ladder.bytes == first.bytes == second.bytes
    assert first.num_cached == ladder.num_cached
    assert dense or not torch.allclose(a, b)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("h2o:recent=1.5", "recent=1.5 as a share"),
        ("h2o:recent=0.9", "recent=0.9 and evict_batch=0.125 must be below 1 together"),
        ("knorm:sinks=-1", "sinks=-1"),
        ("snapkv:kernel=2", "kernel=2 must be odd"),
        ("pyramidkv:beta=0.5", "beta=0.5 must be at least 1"),
        ("lagkv:lag=0", "lag=0"),
        ("random-ladder:seed=-1", "seed=-1"),
        ("tova:window=3", "has no setting 'window'"),
    ],
)
def test_bad_settings_are_refused(spec: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_eval_policy(spec)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lagkv", "capacity=7 must be at least 8 = sinks 4"),
        ("snapkv", "capacity=7 must be at least 13 = sinks 4"),
        ("pyramidkv", "capacity=7 must be at least 13 = sinks 4"),
        ("h2o", "capacity=7 must be at least 8 = sinks 4"),
    ],
)
def test_a_capacity_that_is_too_small_is_refused(model: Any, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        open_cache(model, parse_eval_policy(name), 7)


@pytest.mark.parametrize(
    "name", ["keydiff", "knorm", "lagkv", "tova", "h2o", "snapkv", "pyramidkv"]
)
@pytest.mark.parametrize("capacity", [1, 3, 4])
def test_the_capacity_that_an_error_proposes_works(model: Any, name: str, capacity: int) -> None:
    policy = parse_eval_policy(name)
    with pytest.raises(ConfigError, match=r"must be at least \d+ = sinks 4") as told:
        open_cache(model, policy, capacity)
    proposed = str(told.value).rpartition("; try capacity=")[2]
    open_cache(model, policy, int(proposed))

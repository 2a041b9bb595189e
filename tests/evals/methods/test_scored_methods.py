"""The scored methods and the random ladder, as the harness opens them."""

from typing import Any

import pytest
import torch

from lacache.errors import ConfigError
from lacache.evals.baselines import ScoredCache
from lacache.evals.methods.registry import METHODS, parse_method
from tests.cache.tiny_models import random_ids, tiny_model

SCORED = ("keydiff", "knorm", "lagkv", "tova", "h2o", "snapkv")
BY_LAYER = "pyramidkv"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("name", [*SCORED, BY_LAYER, "random-ladder"])
def test_the_record_makes_the_method_again(name: str) -> None:
    method = parse_method(f"{name}:sinks=2,evict_batch=0.25")
    record = method.record()
    assert record.pop("name") == name
    assert record["sinks"] == 2
    assert METHODS[name](**record) == method


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("dense", [False, True])
def test_as_many_bytes_as_the_sink_window_at_every_moment(
    model: Any, name: str, dense: bool
) -> None:
    ids = random_ids(150)
    held = []
    for spec in (name, "streaming"):
        cache = parse_method(spec).open(model, capacity=60, dense=dense)
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
    cache = parse_method(BY_LAYER).open(model, capacity=64, dense=dense)
    for piece in random_ids(300).split(100 if dense else 7, dim=1):
        cache.prefill(model, piece)
        assert cache.report().bytes <= 64 * per_token
    assert cache.report().capacity == 64
    assert isinstance(cache, ScoredCache)
    stored = [len(cache.kept_tokens(i)[0]) for i in range(5)]
    assert stored == sorted(stored, reverse=True)
    assert stored[0] > stored[-1]


@pytest.mark.parametrize("dense", [False, True])
def test_random_ladders_hold_as_many_bytes_as_the_ladder(model: Any, dense: bool) -> None:
    ids = random_ids(150)
    reports = {}
    for spec in ("ladder:span=2", "random-ladder:span=2", "random-ladder:span=2,seed=1"):
        cache = parse_method(spec).open(model, capacity=40, dense=dense)
        logits = cache.prefill(model, ids)
        reports[spec] = cache.report(), logits
    (ladder, _), (first, a), (second, b) = reports.values()
    assert ladder.bytes == first.bytes == second.bytes
    assert first.num_cached == ladder.num_cached
    assert dense or not torch.allclose(a, b)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("h2o:recent=1.5", "recent=1.5 must be a share"),
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
        parse_method(spec)


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
        parse_method(name).open(model, capacity=7, dense=False)


@pytest.mark.parametrize(
    "name", ["keydiff", "knorm", "lagkv", "tova", "h2o", "snapkv", "pyramidkv"]
)
@pytest.mark.parametrize("capacity", [1, 3, 4])
def test_the_capacity_that_an_error_proposes_works(model: Any, name: str, capacity: int) -> None:
    method = parse_method(name)
    with pytest.raises(ConfigError, match=r"must be at least \d+ = sinks 4") as told:
        method.open(model, capacity=capacity, dense=False)
    proposed = str(told.value).rpartition("; try capacity=")[2]
    method.open(model, capacity=int(proposed), dense=False)

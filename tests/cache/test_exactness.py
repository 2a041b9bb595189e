"""Random configurations, chunks and policies against the slow twin."""

from functools import cache as memoize
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacache import Full, LaCache, Ladder, Streaming
from lacache.errors import ConfigError
from lacache.models.decoder import cache_argument
from lacache.policies import Group, Groups
from tests.cache.slow_cache import slow_logits
from tests.cache.tiny_models import random_ids, tiny_model
from tests.policies.sized import Sized

MODEL_LAYERS = 5


@memoize
def model() -> Any:
    return tiny_model("llama")


@st.composite
def ladders(draw: st.DrawFn) -> tuple[int, Ladder]:
    while True:
        span = draw(st.integers(1, MODEL_LAYERS - 1))
        try:
            config = (
                draw(st.integers(6, 30)),
                Ladder(
                    span=span,
                    overlap=draw(st.integers(0, span - 1)),
                    sinks=draw(st.integers(0, 4)),
                    recent=draw(st.integers(0, 8)),
                    evict_batch=draw(st.sampled_from([1, 3, 100])),
                    geometry=draw(st.sampled_from(["interleaved", "consecutive"])),
                    unit=draw(st.sampled_from([1, 2])),
                    window_layers=draw(st.sampled_from([(), (0,), (1, 4)])),
                    positions=draw(st.sampled_from(["original", "slots"])),
                ),
            )
            config[1].schedule(MODEL_LAYERS, config[0])
        except ConfigError:
            continue
        return config


@given(ladders(), st.lists(st.integers(1, 20), min_size=1, max_size=8), st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_ladder_in_any_chunks(config: tuple[int, Ladder], chunks: list[int], data: Any) -> None:
    ids = random_ids(sum(chunks), seed=data.draw(st.integers(0, 5)))
    expected = slow_logits(model(), ids, config, int(config[1].recent or 0))
    cache = LaCache(model(), *config)
    logits = []
    with torch.no_grad():
        for chunk in ids.split(chunks, dim=1):
            logits.append(model()(chunk, **cache_argument(model(), cache)).logits)
            assert cache.report().num_cached <= config[0]
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-4, rtol=0)


@given(
    ladders(),
    st.lists(st.tuples(st.booleans(), st.integers(1, 15)), min_size=2, max_size=6),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_counted_and_slot_positions_mix(
    config: tuple[int, Ladder], chunks: list[tuple[bool, int]]
) -> None:
    ids = random_ids(sum(length for _, length in chunks), seed=1)
    expected = slow_logits(model(), ids, config, int(config[1].recent or 0))
    cache = LaCache(model(), *config)
    start = 0
    for by_slot, length in chunks:
        chunk = ids[:, start : start + length]
        start += length
        with torch.no_grad():
            if by_slot:
                last = cache.prefill(model(), chunk)
            else:
                last = model()(chunk, **cache_argument(model(), cache)).logits[:, -1]
        torch.testing.assert_close(last, expected[:, start - 1], atol=1e-4, rtol=0)


RENUMBERED: dict[str, Sized] = {
    "ladder": (18, Ladder(span=2, sinks=2, recent=5, evict_batch=3)),
    "window": (12, Streaming(sinks=0, evict_batch=4)),
    "sinks alone are left": (8, Streaming(sinks=2, evict_batch=6)),
    "groups": (
        None,
        Groups(
            (
                Group(Ladder(span=1, sinks=2, recent=4, evict_batch=2), (0, 2, (3, 0)), 22),
                Group(Streaming(sinks=1, evict_batch=2), (1, (3, 1)), 10),
                Group(Streaming(sinks=1, evict_batch=2, positions="slots"), (4,), 10),
            )
        ),
    ),
}


@pytest.mark.parametrize("trained_length", [15, 30, 50])
@pytest.mark.parametrize("policy", RENUMBERED)
def test_keys_are_renumbered_before_the_trained_length(policy: str, trained_length: int) -> None:
    sized = RENUMBERED[policy]
    tiny = tiny_model("llama", max_position_embeddings=trained_length)
    ids = random_ids(160)
    expected = slow_logits(tiny, ids, sized)
    cache = LaCache(tiny, *sized)
    logits, positions = [], []
    with torch.no_grad():
        for chunk in ids.split(7, dim=1):
            logits.append(tiny(chunk, **cache_argument(tiny, cache)).logits)
            positions.append(int(cache.next_positions(1)))
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-4, rtol=0)
    capacity = max(group.schedule.capacity for group in cache.policy.groups)
    assert max(positions) < max(trained_length, capacity)
    # Farther than the capacity, where the model was trained on that.
    assert max(positions) > min(trained_length, 150) - 10


def test_native_layers_see_positions_that_never_go_back() -> None:
    tiny = tiny_model("gemma3", max_position_embeddings=30)
    ids = random_ids(120)
    expected = slow_logits(tiny, ids, RENUMBERED["ladder"])
    cache = LaCache(tiny, *RENUMBERED["ladder"])
    with torch.no_grad():
        found = tiny(ids, **cache_argument(tiny, cache)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert int(cache.next_positions(1)) == 120


def test_streaming_is_a_ladder_of_window_layers() -> None:
    ids = random_ids(60)
    window = (
        16,
        Ladder(span=2, sinks=3, recent=0, evict_batch=2, window_layers=range(MODEL_LAYERS)),
    )
    # R is 1 for this ladder, so a evict_batch of 2 thins two bands: the same two slots.
    expected = slow_logits(model(), ids, window, 0)
    cache = LaCache(model(), 16, Streaming(sinks=3, evict_batch=2))
    with torch.no_grad():
        found = model()(ids, **cache_argument(model(), cache)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert cache.kept_tokens(0) == [0, 1, 2, *range(47, 60)]


def test_full_is_the_default_cache() -> None:
    ids = random_ids(60)
    cache = LaCache(model(), None, Full())
    with torch.no_grad():
        found = model()(ids, **cache_argument(model(), cache)).logits
        assert torch.equal(found, model()(ids).logits)
    assert cache.kept_tokens(2) == list(range(60))
    assert cache.report().compactions == 0

"""Budgets, reports and resets."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BambaConfig, DynamicCache

from lacache import LaCache, Ladder
from lacache.errors import InputError, UnsupportedModelError
from lacache.models.decoder import cache_argument
from lacache.policies.kept import coverage, kept_after
from tests.cache.tiny_models import SHAPE, random_ids, tiny_model
from tests.policies.sized import schedule

CONFIG = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
BYTES_PER_TOKEN = 5 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, float32


@pytest.mark.parametrize(
    ("budget", "prompt_tokens", "capacity"),
    [
        (32, 50, 32),
        ("32", 50, 32),
        (0.5, 50, 25),
        (0.51, 50, 26),
        (1.0, 50, 50),
        (0.01, 50, 8),
        ("0.5", 50, 25),
        (f"{BYTES_PER_TOKEN * 20}B", 50, 20),
        (f"{BYTES_PER_TOKEN * 21 - 1}B", 50, 20),
        ("32KiB", 50, 32 * 1024 // BYTES_PER_TOKEN),
    ],
)
def test_budgets_resolve_to_tokens(budget: Any, prompt_tokens: int, capacity: int) -> None:
    model = tiny_model("llama")
    ids = random_ids(prompt_tokens)
    for cache in (LaCache(model, budget=budget), LaCache(model, budget)):
        cache.prefill(model, ids)
        assert cache.report().capacity == capacity
        assert cache.report().num_cached <= capacity


def test_a_share_is_of_the_first_prompt_however_it_comes() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, budget=0.5)
    model.generate(
        random_ids(60), **cache_argument(model, cache), max_new_tokens=20, do_sample=False
    )
    assert cache.report().capacity == 30
    cache.reset()
    assert cache.report() == LaCache(model, budget=0.5).report()
    cache.prefill(model, random_ids(40))
    cache.prefill(model, random_ids(40))
    assert cache.report().capacity == 20


def test_a_refused_prompt_does_not_count_as_the_first() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, budget=0.5)
    with pytest.raises(InputError):
        cache.prefill(model, torch.full((1, 10), 999))
    with pytest.raises(IndexError):
        model(torch.full((1, 10), 999), **cache_argument(model, cache))
    cache.prefill(model, random_ids(100))
    assert cache.report().capacity == 50


def test_a_copied_model_has_a_cache_of_its_own() -> None:
    model = tiny_model("llama")
    ids = random_ids(50)
    expected = LaCache(model, *CONFIG).prefill(model, ids)
    copied = copy.deepcopy(model)
    cache = LaCache(copied, *CONFIG)
    assert torch.equal(cache.prefill(copied, ids), expected)


def carries_state(model: Any) -> bool:
    """Whether the model alone gives the same answer for a text in two pieces."""
    ids = random_ids(12)
    with torch.no_grad():
        past = DynamicCache(config=model.config)
        model(ids[:, :5], **cache_argument(model, past))
        positions = torch.arange(5, 12)[None]
        rest = model(ids[:, 5:], **cache_argument(model, past), position_ids=positions).logits
        return torch.allclose(rest, model(ids).logits[:, 5:], atol=1e-3)


def test_native_linear_layers() -> None:
    """Bamba's decoder counts positions from 0 in every call that gives none."""
    torch.manual_seed(0)
    config = BambaConfig(
        **SHAPE | {"num_hidden_layers": 6},
        attn_layer_indices=[1, 3, 5],
        mamba_d_state=8,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_n_groups=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = random_ids(60)
    if not carries_state(model):
        # transformers 5.5 forgets the state of these layers when several tokens follow.
        with pytest.raises(UnsupportedModelError, match="in chunks"):
            LaCache(model, *CONFIG)
        return
    cache = LaCache(model, *CONFIG)
    assert cache.growing_layers == [1, 3, 5]
    with torch.no_grad():
        whole = model(ids, **cache_argument(model, cache)).logits
        cache.reset()
        one = [model(ids[:, i : i + 1], **cache_argument(model, cache)).logits for i in range(60)]
        torch.testing.assert_close(torch.cat(one, 1), whole, atol=1e-4, rtol=0)
        large = LaCache(model, budget=64)
        full = model(ids, **cache_argument(model, large)).logits
        torch.testing.assert_close(full, model(ids).logits, atol=1e-4, rtol=0)


def test_the_report_counts_what_is_there() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    empty = cache.report()
    assert (empty.num_seen, empty.num_cached, empty.bytes, empty.coverage) == (0, 0, 0, 0)
    cache.prefill(model, random_ids(60))
    report = cache.report()
    kept = kept_after(schedule(CONFIG, 5), 60)
    assert report.num_seen == 60
    assert report.num_cached == kept.state.num_cached
    assert report.num_evicted == 60 - kept.state.num_cached
    assert report.bytes == kept.state.num_cached * BYTES_PER_TOKEN
    assert report.coverage == coverage(kept.by_pattern)
    assert report.coverage > report.num_cached
    assert report.compactions > 0


def test_peak_memory_is_bounded_in_prefill() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    peak = []
    cache.prefill(model, random_ids(300), lambda n: peak.append(cache.report().bytes))
    assert max(peak) == 16 * BYTES_PER_TOKEN


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("prefill", ["chunked", "dense"])
def test_a_reset_cache_is_as_new(family: str, prefill: Any) -> None:
    model = tiny_model(family)
    used = LaCache(model, *CONFIG, prefill=prefill)
    used.prefill(model, random_ids(70, batch_size=2))
    used.reset()
    new = LaCache(model, *CONFIG, prefill=prefill)
    assert used.report() == new.report()
    ids = random_ids(50, seed=4)
    assert torch.equal(used.prefill(model, ids), new.prefill(model, ids))
    assert used.report() == new.report()
    layers = [1, 2] if family == "gemma3" else range(5)
    assert [used.kept_tokens(i) for i in layers] == [new.kept_tokens(i) for i in layers]


@pytest.mark.parametrize("num_layers", [2, 3, 4, 7])
def test_the_default_span_and_overlap_work_at_any_depth(num_layers: int) -> None:
    model = tiny_model("llama", num_hidden_layers=num_layers)
    cache = LaCache(model, budget=24)
    cache.prefill(model, random_ids(80))
    assert cache.report().num_cached <= 24


def test_progress_counts_every_token() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    steps: list[int] = []
    cache.prefill(model, random_ids(100), steps.append)
    assert sum(steps) == 100
    assert max(steps) <= 16


def test_probing_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").train()
    LaCache(model, *CONFIG)
    assert model.training


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_copy_goes_its_own_way(family: str) -> None:
    model = tiny_model(family)
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, random_ids(50))
    fork = copy.deepcopy(cache)
    expected = cache.prefill(model, random_ids(30, seed=1))
    fork.prefill(model, random_ids(7, seed=2))
    again = LaCache(model, *CONFIG)
    again.prefill(model, random_ids(50))
    assert torch.equal(again.prefill(model, random_ids(30, seed=1)), expected)
    other = LaCache(model, *CONFIG)
    other.prefill(model, random_ids(50))
    other.prefill(model, random_ids(7, seed=2))
    last = torch.tensor([[5]])
    assert torch.equal(fork.prefill(model, last), other.prefill(model, last))

"""The dense protocol: read with a full cache, then compact down."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from lacache import LaCache, Ladder
from lacache.models.decoder import cache_argument
from lacache.policies.kept import kept_after
from tests.cache.slow_cache import rotate
from tests.cache.tiny_models import random_ids, tiny_model
from tests.policies.sized import schedule

CONFIG = (20, Ladder(span=2, sinks=2, recent=6, evict_batch=3))


def test_the_first_logits_are_those_of_a_full_cache() -> None:
    model = tiny_model("llama")
    ids = random_ids(70)
    cache = LaCache(model, *CONFIG, prefill="dense")
    with torch.no_grad():
        dense = cache.prefill(model, ids)
        torch.testing.assert_close(dense, model(ids).logits[:, -1], atol=1e-5, rtol=0)
        chunked = LaCache(model, *CONFIG).prefill(model, ids)
    assert not torch.allclose(dense, chunked, atol=1e-2)


def test_keeps_what_the_schedule_keeps_of_the_dense_states() -> None:
    model = tiny_model("llama")
    ids = random_ids(70)
    cache = LaCache(model, *CONFIG, prefill="dense")
    full = DynamicCache(config=model.config)
    model(ids, **cache_argument(model, full))
    cache.prefill(model, ids)
    kept = kept_after(schedule(CONFIG, 5), 70)
    for layer in range(5):
        tokens = kept.by_pattern[schedule(CONFIG, 5).patterns[layer]]
        assert cache.kept_tokens(layer) == tokens
        assert torch.equal(cache.layers[layer].values, full.layers[layer].values[:, :, tokens])
    assert cache.report().num_cached == kept.state.num_cached <= 20
    assert cache.report().compactions == 1


@pytest.mark.parametrize("positions", ["original", "slots"])
def test_decoding_goes_on_where_the_keys_stand(positions: str) -> None:
    """One token after a dense prefill, attended to by hand over the first layer's keys."""
    model = tiny_model("llama", num_hidden_layers=5)
    ids = random_ids(70)
    cache = LaCache(model, CONFIG[0], replace(CONFIG[1], positions=positions), prefill="dense")
    full = DynamicCache(config=model.config)
    model(ids, **cache_argument(model, full))
    cache.prefill(model, ids)
    seen = {}

    def record(module, args, kwargs, output):  # type: ignore[no-untyped-def]
        seen["output"] = output[0]
        seen["hidden"] = kwargs["hidden_states"]

    attention = model.model.layers[0].self_attn
    handle = attention.register_forward_hook(record, with_kwargs=True)
    cache.prefill(model, torch.tensor([[7]]))
    handle.remove()

    kept = kept_after(schedule(CONFIG, 5), 70)
    kept.settle()
    tokens = kept.by_pattern[schedule(CONFIG, 5).patterns[0]]
    inv_freq = model.model.rotary_emb.inv_freq
    old = full.layers[0]
    stand = torch.arange(len(tokens)) if positions == "slots" else torch.tensor(tokens)
    if positions == "original":
        stand[:2] = stand[2] + torch.tensor([-2, -1])
    unrotated = rotate(old.keys[:, :, tokens], -torch.tensor(tokens), inv_freq)
    here = torch.tensor([len(tokens) if positions == "slots" else 70])
    hidden = seen["hidden"]
    query = rotate(attention.q_proj(hidden).view(1, 1, 4, 8).transpose(1, 2), here, inv_freq)
    key = rotate(attention.k_proj(hidden).view(1, 1, 2, 8).transpose(1, 2), here, inv_freq)
    value = attention.v_proj(hidden).view(1, 1, 2, 8).transpose(1, 2)
    keys = torch.cat([rotate(unrotated, stand, inv_freq), key], dim=2).repeat_interleave(2, 1)
    values = torch.cat([old.values[:, :, tokens], value], dim=2).repeat_interleave(2, 1)
    weights = (query @ keys.transpose(2, 3) / 8**0.5).softmax(-1)
    expected = attention.o_proj((weights @ values).transpose(1, 2).reshape(1, 1, 32))
    torch.testing.assert_close(seen["output"], expected, atol=1e-4, rtol=0)


def test_a_later_prompt_is_prefilled_in_chunks() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG, prefill="dense")
    cache.prefill(model, random_ids(70))
    lengths = []

    def record(module, args, kwargs):  # type: ignore[no-untyped-def]
        lengths.append(kwargs["input_ids"].shape[1])

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    cache.prefill(model, random_ids(50, seed=1))
    handle.remove()
    assert max(lengths) <= 20
    assert sum(lengths) == 50


def test_through_generate() -> None:
    model = tiny_model("gemma3")
    ids = random_ids(70)
    config = (20, Ladder(span=2, sinks=2, recent=6, evict_batch=3))
    cache = LaCache(model, *config, prefill="dense")
    text = model.generate(ids, **cache_argument(model, cache), max_new_tokens=20, do_sample=False)
    assert text[0, 70] == model(ids).logits[0, -1].argmax()
    assert cache.report().num_seen == 89
    assert cache.report().num_cached <= 20

"""Every family against the slow twin: token by token, in pieces, and through plain generate."""

import pytest
import torch

from lacache import LaCache, Ladder
from lacache.models.decoder import cache_argument
from tests.cache.slow_cache import slow_logits, slow_next
from tests.cache.tiny_models import FAMILIES, HYBRID_FAMILIES, random_ids, tiny_model

CONFIG = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
RECENT = 5
TOLERANCE = 1e-4
TOKENS = 44
NEW = 16


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_slow_twin(family: str) -> None:
    model = tiny_model(family)
    ids = random_ids(TOKENS, batch_size=2)
    expected = slow_logits(model, ids, CONFIG, RECENT)
    cache = LaCache(model, *CONFIG)
    with torch.no_grad():
        by_token = [
            model(ids[:, i : i + 1], **cache_argument(model, cache)).logits for i in range(TOKENS)
        ]
        cache.reset()
        whole = model(ids, **cache_argument(model, cache)).logits
        cache.reset()
        pieces = [
            model(ids[:, start : start + 7], **cache_argument(model, cache)).logits
            for start in range(0, TOKENS, 7)
        ]
    torch.testing.assert_close(torch.cat(by_token, 1), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(whole, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=TOLERANCE, rtol=0)
    cache.reset()
    last = cache.prefill(model, ids)
    torch.testing.assert_close(last, expected[:, -1], atol=TOLERANCE, rtol=0)
    assert cache.report().num_cached <= 16


@pytest.mark.parametrize(
    ("family", "prompt_tokens"),
    # The generate of Phi-3 goes no farther than 40 tokens with a cache; see below.
    [(name, n) for name in FAMILIES for n in (3, 20 if name == "phi3-longrope" else 40)],
)
def test_generate_continues_as_the_slow_twin(family: str, prompt_tokens: int) -> None:
    model = tiny_model(family)
    ids = random_ids(prompt_tokens, seed=1)
    cache = LaCache(model, *CONFIG)
    text = model.generate(ids, **cache_argument(model, cache), max_new_tokens=NEW, do_sample=False)
    expected = slow_next(model, text[:, :-1], CONFIG, RECENT)
    assert torch.equal(text[:, prompt_tokens:], expected[:, prompt_tokens - 1 :])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_for_everything_gives_the_default_cache_bit_for_bit(family: str) -> None:
    model = tiny_model(family)
    ids = random_ids(20, seed=2)
    cache = LaCache(model, budget=40)
    wanted = model.generate(
        ids, max_new_tokens=20, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    found = model.generate(
        ids,
        **cache_argument(model, cache),
        max_new_tokens=20,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(found.sequences, wanted.sequences)
    assert torch.equal(torch.stack(found.logits), torch.stack(wanted.logits))
    assert cache.report().num_evicted == 0


def test_generate_of_phi3_drops_any_cache_at_the_original_length() -> None:
    """A trap of transformers, which the docs name: past it, use stream, prefill or the engine."""
    model = tiny_model("phi3-longrope")
    cache = LaCache(model, *CONFIG)
    model.generate(
        random_ids(30), **cache_argument(model, cache), max_new_tokens=20, do_sample=False
    )
    assert cache.report().num_seen == model.config.original_max_position_embeddings == 40
    last = LaCache(model, *CONFIG).prefill(model, random_ids(60))
    expected = slow_logits(model, random_ids(60), CONFIG, RECENT)[:, -1]
    torch.testing.assert_close(last, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_sequences(family: str) -> None:
    model = tiny_model(family)
    ids = random_ids(TOKENS, batch_size=3, seed=3)
    cache = LaCache(model, *CONFIG)
    together = cache.prefill(model, ids)
    for row in range(3):
        cache.reset()
        alone = cache.prefill(model, ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", HYBRID_FAMILIES)
def test_hybrids_put_the_ladder_on_full_attention_only(family: str) -> None:
    model = tiny_model(family)
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, random_ids(60))
    names = [type(layer).__name__ for layer in cache.layers]
    expected = {"sliding_attention": "DynamicSlidingWindowLayer", "full_attention": "BoundedLayer"}
    assert names == [expected[kind] for kind in model.config.layer_types]

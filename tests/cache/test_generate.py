"""What transformers' generate does with the cache besides greedy decoding."""

import torch

from lacache import LaCache, Ladder
from lacache.models.decoder import cache_argument
from tests.cache.tiny_models import random_ids, tiny_model

CONFIG = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))


def test_beam_search_with_a_budget_for_everything_is_the_default() -> None:
    model = tiny_model("qwen3")
    ids = random_ids(10)
    wanted = model.generate(ids, num_beams=3, max_new_tokens=20)
    cache = LaCache(model, budget=40)
    found = model.generate(ids, num_beams=3, max_new_tokens=20, **cache_argument(model, cache))
    assert torch.equal(found, wanted)


def test_beam_search_scores_are_those_of_the_text_it_returns() -> None:
    """Rows are swapped on the way; a mix-up would give a score that the text does not have."""
    model = tiny_model("qwen3")
    ids = random_ids(30)
    cache = LaCache(model, *CONFIG)
    found = model.generate(
        ids,
        num_beams=4,
        max_new_tokens=25,
        length_penalty=0.0,
        **cache_argument(model, cache),
        return_dict_in_generate=True,
        output_scores=True,
    )
    text = found.sequences
    cache = LaCache(model, *CONFIG)
    with torch.no_grad():
        log_probs = model(text[:, :-1], **cache_argument(model, cache)).logits.log_softmax(-1)[
            :, 29:
        ]
    score = log_probs.gather(2, text[:, 30:, None]).sum()
    torch.testing.assert_close(found.sequences_scores[0], score, atol=1e-3, rtol=0)


def test_several_samples_of_one_prompt() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    torch.manual_seed(0)
    text = model.generate(
        random_ids(30),
        num_return_sequences=3,
        do_sample=True,
        max_new_tokens=20,
        **cache_argument(model, cache),
    )
    assert text.shape == (3, 50)
    assert len({tuple(row.tolist()) for row in text}) == 3


def test_a_conversation_goes_on_with_the_whole_text() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    first = model.generate(
        random_ids(30), **cache_argument(model, cache), max_new_tokens=8, do_sample=False
    )
    longer = torch.cat([first, random_ids(25, seed=3)], dim=1)
    found = model.generate(
        longer, **cache_argument(model, cache), max_new_tokens=8, do_sample=False
    )
    fresh = LaCache(model, *CONFIG)
    wanted = model.generate(
        longer, **cache_argument(model, fresh), max_new_tokens=8, do_sample=False
    )
    assert torch.equal(found, wanted)


def test_transformers_own_chunked_prefill() -> None:
    model = tiny_model("llama")
    options = {"max_new_tokens": 8, "do_sample": False}
    ids = random_ids(50)
    whole = model.generate(ids, **cache_argument(model, LaCache(model, *CONFIG)), **options)
    cache = LaCache(model, *CONFIG)
    chunked = model.generate(ids, **cache_argument(model, cache), prefill_chunk_size=7, **options)
    assert torch.equal(chunked, whole)


def test_sequences_can_be_repeated_and_selected() -> None:
    model = tiny_model("llama")
    ids = random_ids(40, batch_size=2)
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, ids)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([1, 2]))
    found = cache.prefill(model, torch.tensor([[5], [6]]))
    for row, token in enumerate([5, 6]):
        alone = LaCache(model, *CONFIG)
        alone.prefill(model, ids[row : row + 1])
        expected = alone.prefill(model, torch.tensor([[token]]))
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-4, rtol=0)


def test_nothing_else_is_touched_by_the_hooks() -> None:
    model = tiny_model("llama")
    ids = random_ids(30)
    before = model(ids).logits
    LaCache(model, *CONFIG)
    LaCache(model, *CONFIG)
    assert torch.equal(model(ids).logits, before)
    assert len(model.model._forward_pre_hooks) == 1

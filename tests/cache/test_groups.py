"""Groups of layers and of KV heads with capacities of their own, against the slow twin."""

from copy import deepcopy
from functools import cache as memoize
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacache import LaCache, Streaming
from lacache.cache.hooks import visible_keys
from lacache.errors import InputError, UnsupportedOperationError
from lacache.models.decoder import cache_argument
from lacache.policies import Full, Group, Groups, Ladder
from tests.cache.slow_cache import slow_kept, slow_logits
from tests.cache.tiny_models import random_ids, tiny_model
from tests.policies.group_strategies import groups
from tests.policies.sized import Sized

NUM_LAYERS, NUM_HEADS = 5, 2
LADDER = (24, Ladder(span=1, sinks=2, recent=4, evict_batch=4))
BY_LAYER = (
    None,
    Groups(
        (
            Group(LADDER[1], (1, 3), LADDER[0]),
            Group(Streaming(sinks=2, evict_batch=4), (0, 2, 4), 9),
        )
    ),
)
BY_HEAD = (
    None,
    Groups(
        (
            Group(LADDER[1], ((0, 1), (3, 0), (3, 1)), LADDER[0]),
            Group(Streaming(sinks=2, evict_batch=4), (1, 2, 4), 9),
            Group(Streaming(sinks=1, evict_batch=4), ((0, 0),), 14),
        )
    ),
)


@memoize
def model(family: str = "llama") -> Any:
    return tiny_model(family)


@memoize
def expected(family: str, plan: Sized) -> torch.Tensor:
    """Logits of 56 tokens; the twin attends in its own way, whatever the model does."""
    return slow_logits(model(family), random_ids(56), plan)


def fast_logits(model: Any, ids: torch.Tensor, plan: Sized, chunks: list[int]) -> torch.Tensor:
    cache = LaCache(model, *plan)
    with torch.no_grad():
        return torch.cat(
            [
                model(chunk, **cache_argument(model, cache)).logits
                for chunk in ids.split(chunks, dim=1)
            ],
            1,
        )


@pytest.mark.parametrize("by_head", [False, True])
@given(data=st.data(), chunks=st.lists(st.integers(1, 20), min_size=1, max_size=5))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_groups_in_random_chunks(by_head: bool, data: Any, chunks: list[int]) -> None:
    plan: Sized = (None, data.draw(groups(NUM_LAYERS, NUM_HEADS, by_head=by_head)))
    ids = random_ids(sum(chunks), seed=data.draw(st.integers(0, 5)))
    cache = LaCache(model(), *plan)
    logits = []
    with torch.no_grad():
        for chunk in ids.split(chunks, dim=1):
            logits.append(model()(chunk, **cache_argument(model(), cache)).logits)
    torch.testing.assert_close(
        torch.cat(logits, 1), slow_logits(model(), ids, plan), atol=1e-4, rtol=0
    )
    held = slow_kept(plan, NUM_LAYERS, NUM_HEADS, 0, sum(chunks))
    for layer in range(NUM_LAYERS):
        for head in range(NUM_HEADS):
            assert cache.kept_tokens(layer, head) == held[layer][head]


@pytest.mark.parametrize("plan", [BY_LAYER, BY_HEAD], ids=["layers", "heads"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "olmo2", "granite"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_families(family: str, attention: str, plan: Sized) -> None:
    tiny = model(family)
    tiny.set_attn_implementation(attention)
    ids = random_ids(56)
    torch.testing.assert_close(
        fast_logits(tiny, ids, plan, [1, 33, 1, 1, 20]), expected(family, plan), atol=1e-4, rtol=0
    )


def test_native_layers_keep_their_own_masks() -> None:
    plan = (
        None,
        Groups(
            (
                Group(LADDER[1], (0, 3), LADDER[0]),
                Group(Streaming(sinks=2, evict_batch=4), (1, (2, 0)), 9),
                one_head(),
            )
        ),
    )
    tiny = model("gemma3")
    ids = random_ids(70)
    expected = slow_logits(tiny, ids, plan)
    torch.testing.assert_close(
        fast_logits(tiny, ids, plan, [33, 1, 36]), expected, atol=1e-4, rtol=0
    )


def one_head() -> Group:
    return Group(Streaming(sinks=0, evict_batch=4), ((2, 1),), 12)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_groups_that_hold_everything_are_the_default_cache(family: str) -> None:
    tiny = model(family)
    layers = 4 if family == "gemma3" else NUM_LAYERS
    plan = (
        None,
        Groups(
            (
                Group(Full(), ((0, 0), *range(2, layers))),
                Group(Streaming(evict_batch=1), ((0, 1), 1), 200),
            )
        ),
    )
    ids = random_ids(60)
    with torch.no_grad():
        expected = tiny(ids).logits
    torch.testing.assert_close(fast_logits(tiny, ids, plan, [60]), expected, atol=5e-5, rtol=0)


def test_a_long_prompt_through_plain_generate() -> None:
    ids = random_ids(50)
    cache = LaCache(model(), *BY_HEAD)
    out = model().generate(
        ids, **cache_argument(model(), cache), max_new_tokens=12, do_sample=False
    )
    logits = slow_logits(model(), out[:, :-1], BY_HEAD)
    assert out[0, 50:].tolist() == logits[0, 49:].argmax(-1).tolist()


def test_dense_prefill_attends_to_everything_and_stores_what_each_group_keeps() -> None:
    ids = random_ids(60)
    cache = LaCache(model(), *BY_HEAD, prefill="dense")
    with torch.no_grad():
        first = model()(ids, **cache_argument(model(), cache)).logits
        torch.testing.assert_close(first, model()(ids).logits, atol=1e-5, rtol=0)
        held = slow_kept(BY_HEAD, NUM_LAYERS, NUM_HEADS, 0, 60)
        assert [cache.kept_tokens(0, h) for h in (0, 1)] == held[0]
        assert cache.report().most_cached == max(len(t) for heads in held for t in heads)
        model()(random_ids(5, seed=1), **cache_argument(model(), cache))


def test_sequences_are_repeated_selected_and_copied() -> None:
    ids = random_ids(60, batch_size=3)
    rows = torch.tensor([2, 2, 0, 0])
    expected = slow_logits(model(), ids, BY_HEAD)
    cache = LaCache(model(), *BY_HEAD)
    with torch.no_grad():
        start = model()(ids[:, :35], **cache_argument(model(), cache)).logits
        torch.testing.assert_close(start, expected[:, :35], atol=1e-4, rtol=0)
        other = deepcopy(cache)
        other.batch_select_indices(torch.tensor([2, 0]))
        other.batch_repeat_interleave(2)
        for one, chosen in ((cache, ids), (other, ids[rows])):
            found = model()(chosen[:, 35:], **cache_argument(model(), one)).logits
            wanted = expected[:, 35:] if one is cache else expected[rows, 35:]
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_beam_search_with_heads_of_a_layer_in_several_groups() -> None:
    """Rows are swapped on the way; a mix-up would give a score that the text does not have."""
    ids = random_ids(30)
    found = model().generate(
        ids,
        num_beams=4,
        max_new_tokens=25,
        length_penalty=0.0,
        **cache_argument(model(), LaCache(model(), *BY_HEAD)),
        return_dict_in_generate=True,
        output_scores=True,
    )
    text = found.sequences
    log_probs = slow_logits(model(), text[:, :-1], BY_HEAD).log_softmax(-1)[:, 29:]
    score = log_probs.gather(2, text[:, 30:, None]).sum()
    torch.testing.assert_close(found.sequences_scores[0], score, atol=1e-3, rtol=0)


@pytest.mark.parametrize("depth", [0, 4])
def test_an_interrupted_forward_is_noticed_in_any_group(depth: int) -> None:
    tiny = model()
    ids = random_ids(40)
    cache = LaCache(tiny, *BY_HEAD)
    cache.prefill(tiny, ids)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = tiny.model.layers[depth].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.prefill(tiny, ids[:, :1])
    hook.remove()
    for _ in range(2):
        with pytest.raises(UnsupportedOperationError, match="interrupted half-way"):
            cache.prefill(tiny, ids[:, :1])
    cache.reset()
    cache.prefill(tiny, ids)


def test_layers_that_know_their_number_pass_the_mask_on() -> None:
    tiny = tiny_model("llama")
    for number, layer in enumerate(tiny.model.layers):
        layer.layer_idx = number
    ids = random_ids(40)
    torch.testing.assert_close(
        fast_logits(tiny, ids, BY_HEAD, [40]), slow_logits(tiny, ids, BY_HEAD), atol=1e-4, rtol=0
    )


def test_bytes_are_those_of_the_tokens_held() -> None:
    cache = LaCache(model(), *BY_HEAD)
    cache.prefill(model(), random_ids(100))
    held = slow_kept(BY_HEAD, NUM_LAYERS, NUM_HEADS, 0, 100)
    tokens = sum(len(tokens) for heads in held for tokens in heads)
    head_size = 8
    assert cache.report().bytes == tokens * 2 * head_size * 4
    cache.reset()
    assert cache.report().bytes == cache.report().num_seen == 0


def test_heads_that_differ_must_be_named() -> None:
    cache = LaCache(model(), *BY_HEAD)
    with pytest.raises(InputError, match="kv_head=None must say which KV head"):
        cache.kept_tokens(0)
    assert cache.kept_tokens(1) == cache.kept_tokens(1, 0)
    for layer in (0, 1):
        with pytest.raises(InputError, match="kv_head=2 must be in 0 to 1"):
            cache.kept_tokens(layer, 2)


@pytest.mark.slow  # that attention takes ten seconds to load
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_attention_without_masks_by_head_is_refused() -> None:
    tiny = tiny_model("llama", seed=3)
    tiny.set_attn_implementation("flex_attention")
    cache = LaCache(tiny, *BY_LAYER)
    # Transformers compiles the making of masks for it, which takes long and is not tested here.
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(UnsupportedOperationError, match="set_attn_implementation"),
    ):
        tiny(random_ids(4), **cache_argument(tiny, cache))


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_visible_keys(held: list[int], num_new: int) -> None:
    lengths = [n + num_new - 1 for n in held]
    visible = visible_keys(lengths, num_new)
    if visible is None:
        assert num_new == 1
        assert len(set(lengths)) == 1
        return
    longest = max(lengths)
    for head, length in enumerate(lengths):
        for query in range(num_new):
            for key in range(longest):
                slot = key - (longest - length)
                expected = 0 <= slot <= length - num_new + query
                assert (
                    bool(visible.expand(1, len(lengths), -1, -1)[0, head, query, key]) == expected
                )


def test_one_mask_serves_all_heads_that_hold_equally_many() -> None:
    visible = visible_keys((5, 5, 5), 4)
    assert visible is not None
    assert visible.shape == (1, 1, 4, 5)

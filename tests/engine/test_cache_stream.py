from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache import Full, LaCache, Ladder, Streaming
from lacache.engine.cache_stream import stream
from lacache.engine.sampling import Sampling
from lacache.errors import ConfigError, InputError, UnsupportedOperationError
from lacache.models.decoder import cache_argument
from tests.cache.slow_cache import slow_next
from tests.cache.tiny_models import random_ids, tiny_model

LADDER = (24, Ladder(span=2, overlap=1, sinks=2, recent=6, evict_batch=3))
PROMPT = random_ids(40)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def generated(model: Any, prompt: torch.Tensor, sized: Any, **options: Any) -> list[int]:
    return list(stream(model, prompt, LaCache(model, *sized), **options))


@settings(max_examples=8)
@given(
    num_prompt=st.integers(1, 40),
    capacity=st.integers(12, 30),
    evict_batch=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_greedy_equals_the_slow_twin(
    model: Any, num_prompt: int, capacity: int, evict_batch: int, seed: int
) -> None:
    config = (capacity, Ladder(span=2, overlap=1, sinks=2, recent=4, evict_batch=evict_batch))
    prompt = random_ids(num_prompt, seed=seed)
    new = generated(model, prompt, config, max_new_tokens=20)
    text = torch.cat([prompt, torch.tensor([new[:-1]])], dim=1)
    assert new == slow_next(model, text, config, 4)[0, num_prompt - 1 :].tolist()


@pytest.mark.parametrize("sized", [LADDER, (24, Streaming(evict_batch=3)), (None, Full())])
def test_greedy_equals_generate(model: Any, sized: Any) -> None:
    cache = LaCache(model, *sized)
    output = model.generate(
        PROMPT, **cache_argument(model, cache), max_new_tokens=60, do_sample=False
    )
    assert generated(model, PROMPT, sized, max_new_tokens=60) == output[0, 40:].tolist()


def test_hybrid_model_equals_generate() -> None:
    hybrid = tiny_model("gemma3")
    cache = LaCache(hybrid, *LADDER)
    output = hybrid.generate(
        PROMPT, **cache_argument(hybrid, cache), max_new_tokens=50, do_sample=False
    )
    assert generated(hybrid, PROMPT, LADDER, max_new_tokens=50) == output[0, 40:].tolist()


@pytest.mark.parametrize("stop_after", [1, 7, 30])
def test_going_on_after_a_stop_equals_no_stop(model: Any, stop_after: int) -> None:
    whole = generated(model, PROMPT, LADDER, max_new_tokens=60)
    cache = LaCache(model, *LADDER)
    tokens = list(islice(stream(model, PROMPT, cache), stop_after))
    assert cache.report().num_seen == 40 + stop_after - 1
    rest = stream(model, torch.tensor([tokens[-1:]]), cache, max_new_tokens=60 - stop_after)
    assert tokens + list(rest) == whole


@pytest.mark.parametrize("positions", ["original", "slots"])
def test_nothing_given_to_the_model_grows(positions: str) -> None:
    """Neither inputs nor masks nor positions, through many times the capacity."""
    model = tiny_model("llama", max_position_embeddings=100)
    cache = LaCache(model, LADDER[0], replace(LADDER[1], positions=positions))
    seen: list[tuple[int, int, int]] = []
    attended: list[int] = []

    def on_decoder(module: Any, args: Any, kwargs: Any) -> None:
        assert kwargs.get("attention_mask") is None
        positions = kwargs["position_ids"]
        assert positions.shape == kwargs["input_ids"].shape
        seen.append((*kwargs["input_ids"].shape, int(positions.max())))

    def on_attention(module: Any, args: Any, kwargs: Any) -> None:
        mask = kwargs["attention_mask"]
        attended.append(0 if mask is None else mask.shape[-1])

    hooks = [
        model.get_decoder().register_forward_pre_hook(on_decoder, with_kwargs=True),
        model.model.layers[2].self_attn.register_forward_pre_hook(on_attention, with_kwargs=True),
    ]
    try:
        prompt = random_ids(200)
        tokens = list(stream(model, prompt, cache, max_new_tokens=300))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(tokens) == 300
    assert sum(length for _, length, _ in seen) == 200 + 299
    assert max(length for _, length, _ in seen[1:]) <= 4  # what one compaction frees
    most = LADDER[0] if positions == "slots" else 100
    assert most - 5 < max(position for _, _, position in seen) < most
    assert {length for _, length, _ in seen[-299:]} == {1}
    assert max(attended) <= LADDER[0]
    assert cache.report().num_seen == 499
    assert cache.report().num_cached <= LADDER[0]


def test_is_endless(model: Any) -> None:
    tokens = stream(model, PROMPT, LaCache(model, *LADDER))
    assert isinstance(tokens, Iterator)
    assert len(list(islice(tokens, 500))) == 500


def test_an_end_token_is_yielded_and_ends(model: Any) -> None:
    whole = generated(model, PROMPT, LADDER, max_new_tokens=30)
    end = whole[11]
    ended = generated(model, PROMPT, LADDER, eos_token_ids=[end])
    assert ended == whole[: whole.index(end) + 1]


def test_no_new_tokens_only_reads(model: Any) -> None:
    cache = LaCache(model, *LADDER)
    assert list(stream(model, PROMPT, cache, max_new_tokens=0)) == []
    assert cache.report().num_seen == 40


def test_nothing_is_prefilled_before_the_first_token_is_taken(model: Any) -> None:
    cache = LaCache(model, *LADDER)
    tokens = stream(model, PROMPT, cache)
    assert cache.report().num_seen == 0
    next(tokens)
    assert cache.report().num_seen == 40


def test_progress_covers_the_prompt_alone(model: Any) -> None:
    pieces: list[int] = []
    generated(model, PROMPT, LADDER, max_new_tokens=30, on_progress=pieces.append)
    assert sum(pieces) == 40
    assert len(pieces) > 1


def test_a_seed_repeats_the_text(model: Any) -> None:
    def sampled(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.0, seed=seed)
        return generated(model, PROMPT, LADDER, max_new_tokens=30, sampling=sampling)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(1) != generated(model, PROMPT, LADDER, max_new_tokens=30)


def test_an_interrupted_step_is_refused_until_reset(model: Any) -> None:
    cache = LaCache(model, *LADDER)
    tokens = stream(model, PROMPT, cache)
    next(tokens)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    hook = model.model.layers[2].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    hook.remove()
    with pytest.raises(UnsupportedOperationError, match=r"cache\.reset\(\)"):
        next(stream(model, PROMPT, cache))
    cache.reset()
    again = list(stream(model, PROMPT, cache, max_new_tokens=30))
    assert again == generated(model, PROMPT, LADDER, max_new_tokens=30)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), "the prompt is empty"),
        (torch.zeros(2, 3, dtype=torch.long), "2 sequences.*a cache and a stream for each"),
        (torch.zeros(3, dtype=torch.long), r"shape \(3,\)"),
        ([1, 2], "list"),
    ],
)
def test_bad_input_is_refused_at_once(model: Any, ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stream(model, ids, LaCache(model, *LADDER))


def test_a_negative_limit_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens=-1"):
        stream(model, PROMPT, LaCache(model, *LADDER), max_new_tokens=-1)

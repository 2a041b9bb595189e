from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from lacache.cache import LaCache
from lacache.common.records import Record
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.monitor import CacheMonitor
from lacache.evals.perplexity import score_tokens
from lacache.evals.provenance import model_record, policy_record, tokens_sha256
from lacache.policies import Full, Ladder, Policy, Streaming, kept_after, parse_policy
from tests.evals.conftest import CAPACITY, POLICIES, TOKENS

# float32 keys and values of 5 layers with 2 heads of 8.
BYTES_PER_TOKEN = 5 * 2 * 8 * 2 * 4


def opened(model: Any, policy: Policy) -> LaCache:
    return LaCache(model, CAPACITY if policy.takes_budget else None, policy)


def scored(
    model: Any, token_ids: list[int], policy: Policy, chunk_size: int = 64
) -> tuple[list[float], LaCache]:
    cache = opened(model, policy)
    return score_tokens(model, token_ids, cache, chunk_size=chunk_size), cache


def kept(cache: LaCache) -> list[list[int]]:
    return [cache.kept_tokens(layer) for layer in range(5)]


def test_a_full_cache_gives_the_cross_entropy_of_one_plain_forward(
    model: Any, token_ids: list[int]
) -> None:
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    expected = cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    nll, _ = scored(model, token_ids, Full(), 37)
    torch.testing.assert_close(torch.tensor(nll), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def one_by_one(model: Any, token_ids: list[int]) -> dict[str, tuple[list[float], LaCache]]:
    return {name: scored(model, token_ids[:150], p, 1) for name, p in POLICIES.items()}


@settings(max_examples=8)
@given(chunk_size=st.integers(2, 80), name=st.sampled_from(sorted(POLICIES)))
def test_the_chunk_size_does_not_change_the_scores(
    model: Any,
    token_ids: list[int],
    one_by_one: dict[str, tuple[list[float], LaCache]],
    chunk_size: int,
    name: str,
) -> None:
    nll, cache = scored(model, token_ids[:150], POLICIES[name], chunk_size)
    expected, other = one_by_one[name]
    torch.testing.assert_close(torch.tensor(nll), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert kept(cache) == kept(other)


def test_what_was_evicted_no_longer_counts(model: Any, token_ids: list[int]) -> None:
    other = [(t + 1) % 64 if 2 <= i < 60 else t for i, t in enumerate(token_ids)]
    scores = {}
    for name, policy in POLICIES.items():
        a, _ = scored(model, token_ids, policy)
        b, _ = scored(model, other, policy)
        scores[name] = torch.tensor(a[-5:]) - torch.tensor(b[-5:])
    assert scores["full"].abs().max() > 1e-3
    # Layer by layer the window still carries something on, but only for depth times its length.
    assert scores["streaming"].abs().max() < 1e-4


@pytest.mark.parametrize("name", POLICIES)
def test_the_trace_follows_the_schedule(model: Any, token_ids: list[int], name: str) -> None:
    cache = opened(model, POLICIES[name])
    monitor = CacheMonitor(model, cache, capacity=None)
    with monitor.monitoring():
        score_tokens(model, token_ids, cache, chunk_size=16)
    schedule = POLICIES[name].schedule(5, CAPACITY)
    assert monitor.trace[-1][0] == TOKENS
    for num_seen, num_cached, num_bytes in monitor.trace:
        assert num_cached == kept_after(schedule, num_seen).state.num_cached <= schedule.capacity
        assert num_bytes == num_cached * BYTES_PER_TOKEN
    after = kept_after(schedule, TOKENS)
    for layer, tokens in enumerate(kept(cache)):
        assert tokens == after.by_pattern[schedule.patterns[layer]]


def test_no_forward_is_longer_than_the_chunk_or_crosses_a_compaction(
    model: Any, token_ids: list[int]
) -> None:
    lengths: list[int] = []
    cache = opened(model, POLICIES["streaming"])
    score_tokens(model, token_ids, cache, chunk_size=16, on_progress=lengths.append)
    assert lengths == [16, 16, 16, *[8] * 31, 4]


def test_a_record_states_what_was_measured(records: list[Record], token_ids: list[int]) -> None:
    ladder = records[-1]
    assert ladder["policy"]["name"] == "ladder"
    assert ladder["policy"]["span"] == 2
    assert (ladder["prefill"], ladder["chunk_size"], ladder["capacity"]) == ("chunked", 8, 48)
    assert ladder["model"]["num_layers"] == 5
    assert ladder["model"]["trained_context"] == 256
    assert ladder["samples_sha256"] == tokens_sha256(token_ids)
    assert ladder["peak_bytes"] == 48 * BYTES_PER_TOKEN
    assert len(ladder["nll"]) == TOKENS - 1
    mean = sum(ladder["nll"]) / (TOKENS - 1)
    assert ladder["perplexity"] == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-3)
    assert ladder["tokens_per_second"] > TOKENS / ladder["seconds"]
    schedule = POLICIES["ladder"].schedule(5, CAPACITY)
    after = kept_after(schedule, TOKENS)
    for layer, numbers in enumerate(ladder["head_to_kept"]):
        for number in numbers:
            assert ladder["kept"][number] == after.by_pattern[schedule.patterns[layer]]


def test_the_hash_differs_between_tokens() -> None:
    assert tokens_sha256([1, 23]) != tokens_sha256([12, 3])


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (Full(), "full"),
        (Streaming(), "streaming"),
        (Ladder(span=2), "ladder"),
        (parse_policy("recall"), "recall"),
        (parse_policy("groups:0-1@32@streaming/2-4@64@ladder"), "groups"),
    ],
)
def test_policies_are_recorded_by_name(policy: Policy, name: str) -> None:
    assert policy_record(policy)["name"] == name


def test_bad_input_is_refused(model: Any, token_ids: list[int]) -> None:
    with pytest.raises(InputError, match="text of 1 tokens"):
        scored(model, token_ids[:1], Full())
    with pytest.raises(InputError, match="chunk_size=0 must be at least 1"):
        scored(model, token_ids, Full(), 0)
    with pytest.raises(ConfigError, match="below the number of layers"):
        scored(model, token_ids, Ladder(span=5))


def test_a_model_that_gives_no_numbers_is_refused(model: Any, token_ids: list[int]) -> None:
    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan")

    hook = model.lm_head.register_forward_hook(spoil)
    try:
        with pytest.raises(ModelError, match="token 1 is nan and must be a finite number"):
            scored(model, token_ids[:4], Full())
    finally:
        hook.remove()


def test_the_record_names_the_model(model: Any) -> None:
    assert model_record(model, "tiny") == {
        "name": "tiny",
        "architecture": "LlamaForCausalLM",
        "num_layers": 5,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "float32",
        "trained_context": 256,
    }


def test_layers_and_heads_are_recorded_as_text() -> None:
    assert policy_record(Ladder(window_layers=(0, 1, 4)))["window_layers"] == "0-1+4"
    record = policy_record(parse_policy("groups:0-1@32@streaming/2-4@64@ladder"))
    assert record == {"name": "groups", "groups": "0-1@32@streaming/2-4@64@ladder"}

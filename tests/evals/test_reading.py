from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from lacache.common.records import Record
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.reading import Reading, model_record, policy_record, read, tokens_sha256
from lacache.policies import Full, Ladder, Policy, Streaming, kept_after
from tests.evals.conftest import POLICIES, TOKENS

# float32 keys and values of 5 layers with 2 heads of 8.
BYTES_PER_TOKEN = 5 * 2 * 8 * 2 * 4
# The engine holds keys twice.
BYTES_PER_SLOT = 5 * 2 * 8 * 3 * 4


def test_a_full_cache_gives_the_cross_entropy_of_one_plain_forward(
    model: Any, token_ids: list[int]
) -> None:
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    expected = cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    reading, _ = read(model, token_ids, Full(), chunk=37)
    torch.testing.assert_close(torch.tensor(reading.nll), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def one_by_one(model: Any, token_ids: list[int]) -> dict[str, Reading]:
    return {name: read(model, token_ids[:150], p, chunk=1)[0] for name, p in POLICIES.items()}


@settings(max_examples=8)
@given(chunk=st.integers(2, 80), name=st.sampled_from(sorted(POLICIES)))
def test_the_chunk_does_not_change_the_scores(
    model: Any, token_ids: list[int], one_by_one: dict[str, Reading], chunk: int, name: str
) -> None:
    in_chunks, _ = read(model, token_ids[:150], POLICIES[name], chunk=chunk)
    torch.testing.assert_close(
        torch.tensor(in_chunks.nll), torch.tensor(one_by_one[name].nll), atol=1e-4, rtol=1e-4
    )
    assert in_chunks.kept == one_by_one[name].kept


def test_what_was_evicted_no_longer_counts(model: Any, token_ids: list[int]) -> None:
    other = [(t + 1) % 64 if 2 <= i < 60 else t for i, t in enumerate(token_ids)]
    scores = {}
    for name, policy in POLICIES.items():
        a, _ = read(model, token_ids, policy)
        b, _ = read(model, other, policy)
        scores[name] = torch.tensor(a.nll[-5:]) - torch.tensor(b.nll[-5:])
    assert scores["full"].abs().max() > 1e-3
    # Layer by layer the window still carries something on, but only for depth times its length.
    assert scores["streaming"].abs().max() < 1e-4


@pytest.mark.parametrize("name", POLICIES)
def test_bytes_and_counts_follow_the_schedule(model: Any, token_ids: list[int], name: str) -> None:
    policy = POLICIES[name]
    reading, writer = read(model, token_ids, policy, chunk=16)
    schedule = policy.bind(5)
    assert reading.held[-1].num_seen == TOKENS
    for held in reading.held:
        kept = kept_after(schedule, held.num_seen)
        assert held.num_cached == kept.state.num_cached <= schedule.capacity
        full, bounded = held.num_cached * BYTES_PER_TOKEN, schedule.capacity * BYTES_PER_SLOT
        assert held.num_bytes == (full if name == "full" else bounded)
    kept = kept_after(schedule, TOKENS)
    for layer, number in enumerate(reading.layer_to_kept):
        assert list(reading.kept[number]) == kept.by_pattern[schedule.patterns[layer]]
    assert writer.report().num_seen == TOKENS
    by_token = []
    for before, held in zip([0, *(h.num_seen for h in reading.held)], reading.held, strict=False):
        by_token += [held.num_bytes] * (held.num_seen - before)
    assert reading.mean_bytes == pytest.approx(sum(by_token) / TOKENS)


def test_no_forward_is_longer_than_the_chunk_or_crosses_a_compaction(
    model: Any, token_ids: list[int]
) -> None:
    lengths: list[int] = []
    read(model, token_ids, POLICIES["streaming"], chunk=16, on_progress=lengths.append)
    assert lengths == [16, 16, 16, *[8] * 31, 4]


def test_a_record_says_what_was_measured(records: list[Record], token_ids: list[int]) -> None:
    ladder = records[-1]
    assert ladder["policy"]["name"] == "ladder"
    assert ladder["policy"]["span"] == 2
    assert ladder["protocol"] == "chunked"
    assert ladder["model"]["num_layers"] == 5
    assert ladder["model"]["dtype"] == "float32"
    assert ladder["model"]["trained_context"] == 256
    assert ladder["text"]["tokens_sha256"] == tokens_sha256(token_ids)
    assert ladder["peak_bytes"] == 48 * BYTES_PER_SLOT
    assert len(ladder["nll"]) == TOKENS - 1
    mean = sum(ladder["nll"]) / (TOKENS - 1)
    assert ladder["perplexity"] == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-4)
    assert ladder["perplexity_by_position"] == [[0, TOKENS, ladder["perplexity"]]]
    assert ladder["perplexity_cumulative"][-1] == [0, TOKENS, ladder["perplexity"]]
    assert ladder["tokens_per_second"] == pytest.approx(TOKENS / ladder["seconds"], rel=0.05)


def test_the_hash_tells_tokens_apart() -> None:
    assert tokens_sha256([1, 23]) != tokens_sha256([12, 3])


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (Full(), "full"),
        (Streaming(64), "streaming"),
        (Ladder(capacity=64, span=2), "ladder"),
    ],
)
def test_policies_are_recorded_by_name(policy: Policy, name: str) -> None:
    assert policy_record(policy)["name"] == name


def test_bad_input_is_refused(model: Any, token_ids: list[int]) -> None:
    with pytest.raises(InputError, match="text of 1 tokens"):
        read(model, token_ids[:1], Full())
    with pytest.raises(InputError, match="chunk=0 must be at least 1"):
        read(model, token_ids, Full(), chunk=0)
    with pytest.raises(ConfigError, match="below the number of layers"):
        read(model, token_ids, Ladder(capacity=64, span=5))


def test_a_model_that_gives_no_numbers_is_refused(model: Any, token_ids: list[int]) -> None:
    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan")

    hook = model.lm_head.register_forward_hook(spoil)
    try:
        with pytest.raises(ModelError, match="token 1 is nan and must be a finite number"):
            read(model, token_ids[:4], Full())
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

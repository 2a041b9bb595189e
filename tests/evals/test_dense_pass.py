"""A dense pass is computed once, and every policy and budget answers as after its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from lacache.common.records import Record
from lacache.common.validation import KV_DTYPES
from lacache.evals import dense_pass
from lacache.evals.answering import answer_sample
from lacache.evals.baselines import BASELINES
from lacache.evals.dense_pass import DensePasses, compute_dense_pass, shares_dense_pass
from lacache.evals.policies import parse_eval_policy
from lacache.evals.runner import EvalRunner
from lacache.evals.runs import CHUNKED, Protocol, RunSpec
from lacache.evals.tasks.task import Question, Sample
from lacache.models import LoadedModel
from lacache.models.model_info import model_info
from lacache.policies import POLICIES, parse_budget, policy_names
from tests.cache.tiny_models import tiny_model
from tests.engine.tiny import tiny_llama, tiny_tokenizer
from tests.evals.lookup import Digit

TOKENIZER = tiny_tokenizer()
DENSE = Protocol("dense", "cache")
DENSE_FIRST = Protocol("dense", "dense")
TEXTS = {
    "retrieval": "retrieval:share=0.5:window=0.5",
    "groups": "groups:0-1@60@streaming/2-4@80@ladder:span=2",
}
NAMES = [name for name in policy_names((*POLICIES, *BASELINES)) if name != "shrinking"]
SAMPLE = Sample(
    "The quick brown fox jumps over the lazy dog. " * 4, (Question(" and then?", ("the 1",), 8),)
)
SHORT = Sample("The quick brown fox.", (Question(" and?", ("the",), 4),))
TURNS = Sample(SAMPLE.context, (*SAMPLE.questions, Question(" one?", ("a b",), 4)))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture(autouse=True)
def calibrated(model: Any, make_up_profile: Callable[[Any], None]) -> None:
    make_up_profile(model)


def answer(
    model: Any,
    name: str,
    protocol: Protocol,
    passes: DensePasses | None,
    *,
    budget: str = "0.5",
    kv_dtype: str | None = None,
    sample: Sample = SAMPLE,
    seen: list[int] | None = None,
) -> Record:
    return answer_sample(
        model,
        TOKENIZER,
        parse_eval_policy(TEXTS.get(name, name)),
        parse_budget(budget),
        protocol,
        Digit(),
        sample,
        kv_dtype=kv_dtype,
        on_tokens=None if seen is None else seen.append,
        passes=passes,
    )


def assert_same(shared: Record, alone: Record) -> None:
    # Masks of several groups may take other kernels: losses are equal up to their last digit.
    for name in ("nll", "nlls"):
        assert shared.pop(name) == pytest.approx(alone.pop(name), abs=2e-5)
    assert shared == alone


@pytest.fixture(scope="module")
def passes(model: Any) -> DensePasses:
    return DensePasses(model)


@pytest.mark.parametrize("budget", ["0.4", "0.7", "1.0"])
@pytest.mark.parametrize("protocol", [DENSE, DENSE_FIRST], ids=lambda one: one.first_token)
@pytest.mark.parametrize("name", NAMES)
def test_a_shared_pass_gives_the_record_of_a_run_alone(
    model: Any, passes: DensePasses, name: str, protocol: Protocol, budget: str
) -> None:
    shared_seen: list[int] = []
    alone_seen: list[int] = []
    shared = answer(model, name, protocol, passes, budget=budget, seen=shared_seen)
    alone = answer(model, name, protocol, None, budget=budget, seen=alone_seen)
    assert_same(shared, alone)
    assert shared_seen == alone_seen


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("name", ["full", "balanced", "ladder", "keydiff", "lagkv"])
def test_keys_and_values_in_fewer_bits_share_a_pass_of_their_own(
    model: Any, passes: DensePasses, name: str, kv_dtype: str
) -> None:
    shared = answer(model, name, DENSE, passes, kv_dtype=kv_dtype)
    assert_same(shared, answer(model, name, DENSE, None, kv_dtype=kv_dtype))


@pytest.mark.parametrize("name", ["full", "balanced", "keydiff"])
def test_several_questions_follow_one_pass(model: Any, passes: DensePasses, name: str) -> None:
    shared = answer(model, name, DENSE, passes, sample=TURNS)
    assert_same(shared, answer(model, name, DENSE, None, sample=TURNS))


def test_the_full_cache_takes_the_pass_of_the_whole_prompt(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = DensePasses(model)
    answer(model, "streaming", DENSE_FIRST, passes)
    monkeypatch.setattr(dense_pass, "compute_dense_pass", None)
    shared = answer(model, "full", CHUNKED, passes)
    assert shared == answer(model, "full", CHUNKED, None)


def test_attention_scores_and_native_layers_run_their_own_forward(model: Any) -> None:
    needs = {"tova", "h2o", "snapkv", "pyramidkv"}
    assert needs == {
        name
        for name in NAMES
        if not shares_dense_pass(model, parse_eval_policy(TEXTS.get(name, name)))
    }
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    sliding = Gemma3ForCausalLM(config).eval()
    assert not shares_dense_pass(sliding, parse_eval_policy("streaming"))


@pytest.mark.parametrize("family", ["phi3-longrope", "llama-dynamic"])
def test_rotations_that_depend_on_the_length_are_no_hindrance(family: str) -> None:
    model = tiny_model(family, vocab_size=300)
    passes = DensePasses(model)
    for name in ("streaming", "ladder"):
        shared = answer(model, name, DENSE, passes, budget="0.5", sample=SHORT)
        assert shared == answer(model, name, DENSE, None, budget="0.5", sample=SHORT)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each dense pass that is computed to be shared."""
    lengths: list[int] = []

    def counting(model: Any, ids: Any, kv_dtype: str | None = None) -> Any:
        lengths.append(len(ids))
        return compute_dense_pass(model, ids, kv_dtype)

    monkeypatch.setattr(dense_pass, "compute_dense_pass", counting)
    return lengths


def test_one_pass_for_each_sample_serves_all_policies_and_budgets(
    model: Any, computed: list[int]
) -> None:
    runner = EvalRunner(LoadedModel(model, TOKENIZER, "tiny", Path()))
    for policy in ("streaming", "ladder:span=2", "keydiff"):
        for budget in ("0.5", "0.8"):
            runner.run(RunSpec(Digit(), parse_eval_policy(policy), 80, budget, 3, protocol=DENSE))
    # Samples of one length differ by a digit.
    assert computed == [78] * 3
    runner.run(RunSpec(Digit(), parse_eval_policy("streaming"), 90, "0.5", 2, protocol=DENSE))
    assert computed == [78] * 3 + [88] * 2


def test_a_prompt_beyond_the_limit_is_computed_by_each_cache(
    model: Any, computed: list[int]
) -> None:
    prompt_tokens = answer(model, "ladder", DENSE, None)["prompt_tokens"]
    size = model_info(model).bytes_per_token * (prompt_tokens - 1)
    for most_bytes, num_computed in ((size - 1, 0), (size, 1)):
        passes = DensePasses(model, most_bytes=most_bytes)
        assert_same(answer(model, "ladder", DENSE, passes), answer(model, "ladder", DENSE, None))
        assert len(computed) == num_computed

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.answering import answer_sample
from lacache.evals.baselines import BASELINES
from lacache.evals.monitor import ProtocolError
from lacache.evals.policies import open_cache, parse_eval_policy
from lacache.evals.runs import Protocol
from lacache.evals.tasks.task import Question, Sample, Task
from lacache.models.decoder import cache_argument
from lacache.policies import (
    POLICIES,
    Full,
    Groups,
    KeptTokens,
    Ladder,
    LayerPolicy,
    Policy,
    Streaming,
    Uniform,
    parse_budget,
    policy_names,
)
from tests.engine.tiny import tiny_llama, tiny_tokenizer
from tests.evals.lookup import LAYERS, LOOKING, Digit, lookup_model

TOKENIZER = tiny_tokenizer()
CHUNKED = Protocol()
BUDGET = parse_budget(32)
DENSE = Protocol("dense", "cache")
DENSE_FIRST = Protocol("dense", "dense")


@pytest.fixture(scope="module")
def lookup() -> Any:
    return lookup_model()


@pytest.fixture(scope="module")
def random_model() -> Any:
    return tiny_llama()


def put(
    model: Any,
    task: Digit,
    text: str | Policy,
    budget: Any,
    protocol: Protocol = CHUNKED,
    length: int = 100,
) -> Record:
    (sample,) = task.samples(TOKENIZER, length=length, count=1, seed=0)
    policy = parse_eval_policy(text)
    return answer_sample(model, TOKENIZER, policy, parse_budget(budget), protocol, task, sample)


@pytest.mark.parametrize("protocol", [CHUNKED, DENSE, DENSE_FIRST])
def test_a_full_cache_finds_the_needle_anywhere(lookup: Any, protocol: Protocol) -> None:
    for place in (0, 10, 50, 95):
        assert put(lookup, Digit(place), "full", 40, protocol)["score"] == 1.0


def test_a_method_that_drops_the_needle_cannot_answer(lookup: Any) -> None:
    assert put(lookup, Digit(10), "streaming", 40)["score"] == 0.0
    assert put(lookup, Digit(10), "streaming", 40)["nll"] > 5.0
    # Sinks and the newest tokens are what StreamingLLM has.
    assert put(lookup, Digit(2), "streaming", 40)["score"] == 1.0
    assert put(lookup, Digit(90), "streaming", 40)["score"] == 1.0
    assert put(lookup, Digit(90), "streaming", 40)["nll"] < 2.0


def test_only_the_logits_of_the_dense_pass_know_what_was_dropped(lookup: Any) -> None:
    assert put(lookup, Digit(10), "streaming", 40, DENSE_FIRST)["score"] == 1.0
    assert put(lookup, Digit(10), "streaming", 40, DENSE)["score"] == 0.0
    assert put(lookup, Digit(90), "streaming", 40, DENSE)["score"] == 1.0


@pytest.mark.parametrize("protocol", [CHUNKED, DENSE])
def test_several_questions_use_what_the_cache_still_holds(lookup: Any, protocol: Protocol) -> None:
    assert put(lookup, Digit(10, 3), "streaming", 40, protocol)["scores"] == [0.0] * 3
    assert put(lookup, Digit(60, 3), "full", 40, protocol)["scores"] == [1.0] * 3


def test_a_dense_pass_over_the_context_does_not_answer_several_questions(lookup: Any) -> None:
    with pytest.raises(ConfigError, match="asks 2 questions about a context"):
        put(lookup, Digit(10, 2), "streaming", 40, DENSE_FIRST)


SCHEDULED = st.sampled_from(
    [
        Streaming(sinks=2, evict_batch=0.3),
        Ladder(span=3, sinks=2, recent=0.2),
        Ladder(span=3, overlap=2, sinks=2, recent=0.2, geometry="consecutive", evict_batch=0.2),
        Ladder(span=2, sinks=2, recent=0, unit=2, window_layers=(LOOKING,)),
        Uniform(span=3, sinks=2, recent=0.2),
    ]
)


@settings(max_examples=20)
@given(policy=SCHEDULED, place=st.integers(0, 80), capacity=st.integers(20, 60))
def test_the_answer_is_right_where_the_schedule_says_that_the_needle_is_held(
    lookup: Any, policy: LayerPolicy, place: int, capacity: int
) -> None:
    sample = put(lookup, Digit(place), policy, capacity, length=84)
    schedule = policy.schedule(LAYERS, capacity)
    kept = KeptTokens(schedule)
    kept.advance(sample["prompt_tokens"] - 1)
    kept.settle()
    held = place in kept.by_pattern[schedule.patterns[LOOKING]]
    assert sample["score"] == float(held)


def test_a_full_cache_writes_what_transformers_own_cache_writes(random_model: Any) -> None:
    questions = (Question(" what then? ", ("the 1",), 12),)
    sample = Sample("Of the things that are told, the last one is this:", questions)
    asked = answer_sample(
        random_model, TOKENIZER, Full(), parse_budget("0.1"), CHUNKED, Digit(), sample
    )
    ids = TOKENIZER(sample.context + questions[0].text, return_tensors="pt").input_ids
    with torch.no_grad():
        written = random_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            **cache_argument(random_model, DynamicCache(config=random_model.config)),
        )
        answer = TOKENIZER("the 1", return_tensors="pt").input_ids
        logits = random_model(torch.cat([ids, answer], dim=1), use_cache=False).logits
    assert asked["predictions"] == [TOKENIZER.decode(written[0, ids.shape[1] :])]
    expected = cross_entropy(logits[0, ids.shape[1] - 1 : -1].float(), answer[0], reduction="sum")
    assert asked["nll"] == pytest.approx(float(expected), abs=1e-3)
    assert asked["prompt_tokens"] == ids.shape[1]
    assert asked["full_bytes"] == asked["peak_bytes"]


def greedy(model: Any, cache: LaCache, ids: list[int], count: int) -> list[int]:
    """Token by token, the slow and obvious way."""
    for token in ids:
        logits = cache.prefill(model, torch.tensor([[token]]))
    written = []
    for _ in range(count):
        written.append(int(logits.argmax()))
        logits = cache.prefill(model, torch.tensor([written[-1:]]))
    return written


@pytest.mark.parametrize("policy", [Streaming(), Ladder(), Uniform()])
def test_answers_follow_from_prefill_token_by_token(random_model: Any, policy: Policy) -> None:
    questions = (Question(" one? ", ("the",), 5), Question(" two? ", ("b",), 4))
    sample = Sample("The quick brown fox jumps over the lazy dog again and again.", questions)
    asked = answer_sample(
        random_model, TOKENIZER, policy, parse_budget(32), CHUNKED, Digit(), sample
    )
    slow: Any = open_cache(random_model, policy, 32)
    first = greedy(
        random_model, copy.deepcopy(slow), TOKENIZER(sample.context + " one? ").input_ids, 5
    )
    ids = [*TOKENIZER(sample.context + " one? ").input_ids, *first]
    second = greedy(random_model, slow, [*ids, *TOKENIZER(" two? ").input_ids], 4)
    slow_predictions = [TOKENIZER.decode(one, skip_special_tokens=True) for one in (first, second)]
    assert asked["predictions"] == slow_predictions


@final
@dataclass(frozen=True)
class Anywhere(Task):
    """Any question, right once its answer occurs."""

    name: ClassVar[str] = "anywhere"

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        raise NotImplementedError


@final
@dataclass(frozen=True)
class WrittenOut(Task):
    """Its twin: answers are never cut short."""

    name: ClassVar[str] = "written-out"
    stays_right: ClassVar[bool] = False

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        raise NotImplementedError


@settings(max_examples=20)
@given(start=st.integers(0, 11), length=st.integers(1, 4), text=st.text("abc. ", min_size=4))
def test_the_last_answer_ends_once_it_is_right(
    random_model: Any, start: int, length: int, text: str
) -> None:
    def ask(task: Task, *answers: str) -> Record:
        questions = tuple(Question("\n", (answer,), 12) for answer in answers)
        sample = Sample(text, questions)
        return answer_sample(random_model, TOKENIZER, Streaming(), BUDGET, CHUNKED, task, sample)

    first, last = ask(WrittenOut(), "0", "0")["predictions"]
    answer = last[start : start + length] or "never"
    slow, fast = ask(WrittenOut(), first[:1], answer), ask(Anywhere(), first[:1], answer)
    assert fast["scores"] == slow["scores"]
    assert fast["nlls"] == slow["nlls"]
    assert fast["predictions"][0] == slow["predictions"][0] == first
    if answer not in last:
        assert fast["predictions"][1] == last
    elif "\ufffd" not in last:  # else a token may end within a character
        before, _, _ = last.partition(answer)
        assert fast["predictions"][1] == before + answer


@pytest.fixture
def calibrated(random_model: Any, make_up_profile: Callable[[Any], None]) -> None:
    make_up_profile(random_model)


NAMES = [
    name
    for name, (kind, _) in policy_names((*POLICIES, *BASELINES)).items()
    if kind is not Groups and name != "shrinking"  # which have sizes of their own
]
TEXTS = {"retrieval": "retrieval:share=0.5:window=0.5"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [CHUNKED, DENSE])
@pytest.mark.usefixtures("calibrated")
def test_bytes_stay_within_the_budget(random_model: Any, name: str, protocol: Protocol) -> None:
    text = TEXTS.get(name, name)
    sample = put(random_model, Digit(10), text, "0.6", protocol, length=120)
    per_token = sample["full_bytes"] / 119
    assert sample["prompt_tokens"] == 119
    if name == "full":
        assert sample["capacity"] is None
        return
    assert sample["capacity"] == 72
    assert sample["mean_bytes"] <= sample["peak_bytes"] <= 72 * per_token
    # A few heads with a long history have room for more than this prompt.
    assert name in ("balanced", "recall") or sample["peak_bytes"] >= 0.85 * 72 * per_token


def test_mean_bytes_are_those_after_each_token(random_model: Any) -> None:
    sample = put(random_model, Digit(10), "streaming:sinks=2:evict_batch=10", 40, length=120)
    kept = KeptTokens(Streaming(sinks=2, evict_batch=10).schedule(5, 40))
    held = []
    for _ in range(119):
        kept.advance(1)
        held.append(kept.state.num_cached)
    per_token = sample["full_bytes"] / 119
    assert sample["mean_bytes"] == pytest.approx(per_token * sum(held) / 119, abs=1)
    assert sample["peak_bytes"] == 40 * per_token


def cheat(
    model: Any, policy: Policy, capacity: int, *, dense: bool = False, **_: Any
) -> HookedCache:
    """Open a cache that holds twice what it may."""
    return LaCache(model, 2 * capacity, Streaming(), prefill="dense" if dense else "chunked")


def liar(
    model: Any, policy: Policy, capacity: int, *, dense: bool = False, **_: Any
) -> HookedCache:
    """Open a cache that holds everything and reports nothing."""
    cache: Any = LaCache(model, policy=Full())
    report = cache.report

    class Report:
        num_seen = property(lambda self: report().num_seen)
        num_cached = 0
        bytes = 0

    cache.report = lambda: Report()
    return cache  # type: ignore[no-any-return]


def hider(
    model: Any, policy: Policy, capacity: int, *, dense: bool = False, **_: Any
) -> HookedCache:
    """Open a cache that gives the attention more than its layers store."""
    cache: Any = LaCache(model, capacity, Streaming())
    update = cache.update

    def more(*args: Any, **kwargs: Any) -> Any:
        keys, values = update(*args, **kwargs)
        return keys.repeat(1, 1, 2, 1), values.repeat(1, 1, 2, 1)

    cache.update = more
    cache.next_chunk = lambda num_tokens: 1
    return cache  # type: ignore[no-any-return]


@pytest.mark.parametrize("opener", [cheat, liar, hider])
def test_a_cache_that_cheats_is_caught(
    random_model: Any, opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lacache.evals.monitor.open_cache", opener)
    with pytest.raises(ProtocolError, match="a run must never hold more than its budget"):
        put(random_model, Digit(10), "streaming", 30)


def test_a_dense_run_may_not_keep_more_than_its_budget(
    random_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lacache.evals.monitor.open_cache", cheat)
    with pytest.raises(ProtocolError):
        put(random_model, Digit(10), "streaming", 30, DENSE)


def test_monitoring_leaves_no_trace(random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first cache for a model leaves a pair of hooks of its own.
    put(random_model, Digit(10), "streaming", 40)
    hooks = len(random_model.get_decoder()._forward_hooks)
    put(random_model, Digit(10), "streaming", 40)
    monkeypatch.setattr("lacache.evals.monitor.open_cache", cheat)
    with pytest.raises(ProtocolError):
        put(random_model, Digit(10), "streaming", 30)
    assert len(random_model.get_decoder()._forward_hooks) == hooks


def test_a_budget_in_bytes_is_for_all_growing_layers(random_model: Any) -> None:
    sample = put(random_model, Digit(10), "streaming", "20KiB")
    per_token = sample["full_bytes"] / (sample["prompt_tokens"])
    assert sample["capacity"] == 20 * 1024 // per_token
    assert sample["peak_bytes"] <= 20 * 1024


def test_the_end_of_a_text_ends_an_answer(lookup: Any) -> None:
    ending = copy.deepcopy(lookup)
    ending.generation_config.eos_token_id = int(TOKENIZER("7").input_ids[0])
    task = Digit(50)
    question = Question("\n", ("7",), 5)
    sample = Sample("x" * 50 + "7" + "x" * 20, (question,))
    asked = answer_sample(ending, TOKENIZER, Full(), parse_budget(1), CHUNKED, task, sample)
    assert asked["predictions"] == [""]


@pytest.mark.parametrize(
    ("prefill", "first_token", "message"),
    [
        ("loose", "cache", "prefill='loose' must be chunked or dense"),
        ("dense", "sparse", "first_token='sparse' must be cache or dense"),
        ("chunked", "dense", "a chunked prefill has none"),
    ],
)
def test_bad_protocols_are_refused(prefill: Any, first_token: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol(prefill, first_token)


def test_bad_samples_are_refused(random_model: Any) -> None:
    def put_sample(sample: Sample) -> None:
        answer_sample(random_model, TOKENIZER, Full(), parse_budget(9), CHUNKED, Digit(), sample)

    with pytest.raises(InputError, match="has 0 questions"):
        put_sample(Sample("x", ()))
    with pytest.raises(InputError, match="prompt of 1 tokens is too short"):
        put_sample(Sample("", (Question("x", ("y",), 1),)))
    with pytest.raises(InputError, match="has no right answer"):
        put_sample(Sample("xx", (Question("x", (), 1),)))


def test_a_model_that_gives_no_numbers_is_refused(random_model: Any) -> None:
    hook = random_model.lm_head.register_forward_hook(lambda m, a, output: output * float("nan"))
    try:
        with pytest.raises(ModelError, match="must be a finite number"):
            put(random_model, Digit(10), "full", 40)
    finally:
        hook.remove()

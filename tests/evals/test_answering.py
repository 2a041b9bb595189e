import copy
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from lacache.cache import HookedCache, LaCache
from lacache.calibration.store import profile_path, save_profile
from lacache.common.records import Record
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.answering import answer_sample
from lacache.evals.methods.full import FullCache
from lacache.evals.methods.ladder import LadderMethod
from lacache.evals.methods.method import Method
from lacache.evals.methods.registry import METHODS, parse_method
from lacache.evals.methods.streaming import StreamingMethod
from lacache.evals.methods.uniform import UniformStride
from lacache.evals.monitor import ProtocolError
from lacache.evals.runs import Protocol
from lacache.evals.tasks.task import Question, Sample
from lacache.models.decoder import cache_argument
from lacache.models.fingerprint import fingerprint
from lacache.models.model_info import model_info
from lacache.policies import Full, KeptTokens, Streaming
from lacache.policies.budget import parse_budget
from lacache.policies.head_profile import HeadProfile
from lacache.policies.uniform import Uniform
from tests.engine.tiny import tiny_llama, tiny_tokenizer
from tests.evals.lookup import LAYERS, LOOKING, Digit, lookup_model

TOKENIZER = tiny_tokenizer()
CHUNKED = Protocol()
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
    spec: str | Method,
    budget: Any,
    protocol: Protocol = CHUNKED,
    length: int = 100,
) -> Record:
    (sample,) = task.samples(TOKENIZER, length=length, count=1, seed=0)
    method = parse_method(spec) if isinstance(spec, str) else spec
    return answer_sample(model, TOKENIZER, method, parse_budget(budget), protocol, task, sample)


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
def test_several_questions_are_asked_of_what_the_cache_still_holds(
    lookup: Any, protocol: Protocol
) -> None:
    assert put(lookup, Digit(10, 3), "streaming", 40, protocol)["scores"] == [0.0] * 3
    assert put(lookup, Digit(60, 3), "full", 40, protocol)["scores"] == [1.0] * 3


def test_a_dense_pass_over_the_context_does_not_answer_several_questions(lookup: Any) -> None:
    with pytest.raises(ConfigError, match="asks 2 questions about a context"):
        put(lookup, Digit(10, 2), "streaming", 40, DENSE_FIRST)


METHOD = st.sampled_from(
    [
        StreamingMethod(sinks=2, evict_batch=0.3),
        LadderMethod(span=3, sinks=2, recent=0.2),
        LadderMethod(
            span=3, overlap=2, sinks=2, recent=0.2, geometry="consecutive", evict_batch=0.2
        ),
        LadderMethod(span=2, sinks=2, recent=0.0, unit=2, window_layers=(LOOKING,)),
        UniformStride(span=3, sinks=2, recent=0.2),
    ]
)


@settings(max_examples=20)
@given(method=METHOD, place=st.integers(0, 80), capacity=st.integers(20, 60))
def test_the_answer_is_right_where_the_schedule_says_that_the_needle_is_held(
    lookup: Any, method: Method, place: int, capacity: int
) -> None:
    sample = put(lookup, Digit(place), method, capacity, length=84)
    policy: Any
    if isinstance(method, StreamingMethod):
        policy = Streaming(capacity, sinks=2, evict_batch=-(-capacity * 3 // 10))
    elif isinstance(method, LadderMethod):
        policy = method.policy(capacity, LAYERS)
    else:
        assert isinstance(method, UniformStride)
        ladder = {f.name: getattr(method, f.name) for f in fields(method)}
        policy = Uniform(LadderMethod(**ladder).policy(capacity, LAYERS))
    schedule = policy.bind(LAYERS)
    kept = KeptTokens(schedule)
    kept.read(sample["prompt_tokens"] - 1)
    kept.settle()
    held = place in kept.by_pattern[schedule.patterns[LOOKING]]
    assert sample["score"] == float(held)


def test_a_full_cache_writes_what_transformers_own_cache_writes(random_model: Any) -> None:
    questions = (Question(" what then? ", ("the 1",), 12),)
    sample = Sample("Of the things that are told, the last one is this:", questions)
    asked = answer_sample(
        random_model, TOKENIZER, FullCache(), parse_budget("0.1"), CHUNKED, Digit(), sample
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


@pytest.mark.parametrize("method", [StreamingMethod(), LadderMethod(), UniformStride()])
def test_answers_follow_from_reading_token_by_token(random_model: Any, method: Method) -> None:
    questions = (Question(" one? ", ("the",), 5), Question(" two? ", ("b",), 4))
    sample = Sample("The quick brown fox jumps over the lazy dog again and again.", questions)
    asked = answer_sample(
        random_model, TOKENIZER, method, parse_budget(32), CHUNKED, Digit(), sample
    )
    slow: Any = method.open(random_model, capacity=32, dense=False)
    first = greedy(
        random_model, copy.deepcopy(slow), TOKENIZER(sample.context + " one? ").input_ids, 5
    )
    ids = [*TOKENIZER(sample.context + " one? ").input_ids, *first]
    second = greedy(random_model, slow, [*ids, *TOKENIZER(" two? ").input_ids], 4)
    assert asked["predictions"] == [TOKENIZER.decode(first), TOKENIZER.decode(second)]


@pytest.fixture
def calibrated(
    random_model: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile, made up, for what gives some KV heads a long history."""
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path_factory.mktemp("home")))
    heads = model_info(random_model).num_heads
    order = tuple((layer, head) for layer, count in enumerate(heads) for head in range(count))
    need = tuple((0.1,) * count for count in heads)
    profile = HeadProfile(fingerprint(random_model), "tiny", 64, 4, need, order[::-1], ((0, 1.0),))
    save_profile(profile, profile_path(profile.fingerprint))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("protocol", [CHUNKED, DENSE])
@pytest.mark.usefixtures("calibrated")
def test_bytes_stay_within_the_budget(random_model: Any, name: str, protocol: Protocol) -> None:
    specs = {"released-ladder": "released-ladder:span=3", "history": "history:share=0.5,window=0.5"}
    sample = put(random_model, Digit(10), specs.get(name, name), "0.6", protocol, length=120)
    per_token = sample["full_bytes"] / 119
    assert sample["prompt_tokens"] == 119
    if name == "full":
        assert sample["capacity"] is None
        return
    assert sample["capacity"] == 72
    assert sample["mean_bytes"] <= sample["peak_bytes"] <= 72 * per_token
    # The preset's few heads with a history have room for more than this prompt.
    assert name == "preset" or sample["peak_bytes"] >= 0.85 * 72 * per_token


def test_mean_bytes_are_those_after_each_token(random_model: Any) -> None:
    sample = put(random_model, Digit(10), "streaming:sinks=2,evict_batch=0.25", 40, length=120)
    kept = KeptTokens(Streaming(40, sinks=2, evict_batch=10).bind(5))
    held = []
    for _ in range(119):
        kept.read(1)
        held.append(kept.state.num_cached)
    per_token = sample["full_bytes"] / 119
    assert sample["mean_bytes"] == pytest.approx(per_token * sum(held) / 119, abs=1)
    assert sample["peak_bytes"] == 40 * per_token


@dataclass(frozen=True)
class Cheat(Method):
    """Holds twice what it may."""

    name: ClassVar[str] = "cheat"

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        return LaCache.from_model(
            model, Streaming(2 * capacity), prefill="dense" if dense else "chunked"
        )

    def record(self) -> Record:
        return {"name": self.name}


class Liar(Cheat):
    """Holds everything and reports nothing."""

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        cache: Any = LaCache.from_model(model, Full())
        report = cache.report

        class Report:
            num_seen = property(lambda self: report().num_seen)
            bytes = 0

        cache.report = lambda: Report()
        return cache


class Hider(Cheat):
    """Gives the attention more than its layers store."""

    def open(self, model: Any, *, capacity: int, dense: bool) -> HookedCache:
        cache: Any = LaCache.from_model(model, Streaming(capacity))
        update = cache.update

        def more(*args: Any, **kwargs: Any) -> Any:
            keys, values = update(*args, **kwargs)
            return keys.repeat(1, 1, 2, 1), values.repeat(1, 1, 2, 1)

        cache.update = more
        cache.next_chunk = lambda num_tokens: 1
        return cache


@pytest.mark.parametrize("cheat", [Cheat(), Liar(), Hider()])
def test_a_method_that_cheats_is_caught(random_model: Any, cheat: Method) -> None:
    with pytest.raises(ProtocolError, match="a run must never hold more than its budget"):
        put(random_model, Digit(10), cheat, 30)


def test_a_dense_run_may_not_keep_more_than_its_budget(random_model: Any) -> None:
    with pytest.raises(ProtocolError):
        put(random_model, Digit(10), Cheat(), 30, DENSE)


def test_watching_leaves_no_trace(random_model: Any) -> None:
    # The first cache for a model leaves a pair of hooks of its own.
    put(random_model, Digit(10), "streaming", 40)
    hooks = len(random_model.get_decoder()._forward_hooks)
    put(random_model, Digit(10), "streaming", 40)
    with pytest.raises(ProtocolError):
        put(random_model, Digit(10), Cheat(), 30)
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
    asked = answer_sample(ending, TOKENIZER, FullCache(), parse_budget(1), CHUNKED, task, sample)
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
        answer_sample(
            random_model, TOKENIZER, FullCache(), parse_budget(9), CHUNKED, Digit(), sample
        )

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

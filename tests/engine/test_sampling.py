import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from lacache import Full, LaCache, stream
from lacache.engine.sampler import Sampler, SamplerState
from lacache.engine.sampling import Sampling
from lacache.errors import ConfigError, InputError, ModelError
from tests.cache.tiny_models import random_ids, tiny_model

# Apart from each other, so that no two tokens tie.
LOGITS = st.permutations([0.5 * i - 1.7 for i in range(8)])
TOKENS = st.lists(st.integers(0, 7), max_size=40)


def slow_probabilities(logits: list[float], tokens: list[int], s: Sampling) -> list[float]:
    """As the definitions say, one filter after the other."""
    left = dict(enumerate(logits))
    for token in set(tokens):
        positive = left[token] > 0
        left[token] *= 1 / s.repetition_penalty if positive else s.repetition_penalty
    left = {i: logit / s.temperature for i, logit in left.items()}

    def softmax() -> dict[int, float]:
        total = sum(math.exp(logit) for logit in left.values())
        return {i: math.exp(logit) / total for i, logit in left.items()}

    if s.top_k:
        best = sorted(left, key=left.__getitem__, reverse=True)[: s.top_k]
        left = {i: left[i] for i in best}
    chosen: list[int] = []
    for token, _ in sorted(softmax().items(), key=lambda pair: -pair[1]):
        if sum(softmax()[i] for i in chosen) >= s.top_p:
            break
        chosen.append(token)
    left = {i: left[i] for i in chosen}
    most = max(softmax().values())
    left = {i: left[i] for i, p in softmax().items() if p >= s.min_p * most}
    return [softmax().get(i, 0.0) for i in range(len(logits))]


@given(
    logits=LOGITS,
    temperature=st.floats(0.3, 3),
    top_k=st.integers(0, 9),
    top_p=st.floats(0.05, 0.99),
    min_p=st.floats(0, 1),
    # One value, for which no two tokens tie.
    penalty=st.sampled_from([1.0, 1.37]),
    tokens=TOKENS,
)
def test_probabilities_equal_the_definition(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    tokens: list[int],
) -> None:
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
    )
    sampler = Sampler(sampling)
    sampler.see(torch.tensor(tokens))
    fast = sampler.probabilities(torch.tensor([logits]))[0]
    slow = torch.tensor(slow_probabilities(logits, tokens, sampling))
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


@given(logits=LOGITS)
def test_greedy_takes_the_largest(logits: list[float]) -> None:
    choice = Sampler(Sampling(top_k=3, top_p=0.2)).choose(torch.tensor([logits]))
    assert choice == logits.index(max(logits))


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3))
    logits = torch.tensor([[0.7, 0.2, 0.1, 0.0]]).log()
    counts = [0, 0, 0, 0]
    for _ in range(4000):
        counts[sampler.choose(logits)] += 1
    assert counts[3] == 0
    assert abs(counts[0] / 4000 - 0.7) < 0.04
    assert abs(counts[1] / 4000 - 0.2) < 0.04


def test_the_coldest_temperature_does_not_overflow() -> None:
    sampler = Sampler(Sampling(temperature=0.01, seed=0))
    assert sampler.choose(torch.tensor([[30.0, -500.0, 400.0]], dtype=torch.bfloat16)) == 2


@given(logits=LOGITS, seed=st.integers(0, 2**63 - 1), times=st.integers(1, 5))
def test_a_draw_is_where_the_cumulated_probability_passes_the_random_number(
    logits: list[float], seed: int, times: int
) -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_k=5, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        probabilities = sampler.probabilities(torch.tensor([logits]))[0].tolist()
        number = float(torch.rand((), dtype=torch.float64, generator=generator))
        sums = [math.fsum(probabilities[: i + 1]) / math.fsum(probabilities) for i in range(8)]
        token = next(i for i in range(8) if sums[i] > number)
        assert sampler.choose(torch.tensor([logits])) == token
        assert probabilities[token] > 0


def test_a_token_without_probability_is_not_drawn_even_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(*shape).double())
    sampler = Sampler(Sampling(temperature=1.0, top_k=1))
    assert sampler.choose(torch.tensor([[0.0, 1.0, 2.0]])) == 2


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=8, max_size=8),
    tokens=TOKENS.filter(bool),
    penalty=st.floats(0.01, 100),
)
def test_the_penalty_equals_the_processor_over_all_tokens(
    logits: list[float], tokens: list[int], penalty: float
) -> None:
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    scores = processor(torch.tensor([tokens]), torch.tensor([logits]))
    greedy = Sampler(Sampling(repetition_penalty=penalty))
    drawing = Sampler(Sampling(repetition_penalty=penalty, temperature=1.0))
    for sampler in (greedy, drawing):
        sampler.see(torch.tensor([tokens[:3]]))
        sampler.see(torch.tensor(tokens[3:]))
    torch.testing.assert_close(
        drawing.probabilities(torch.tensor([logits])), scores.softmax(-1), rtol=0, atol=0
    )
    assert greedy.choose(torch.tensor([logits])) == int(scores.argmax())


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("penalty", [0.8, 1.05, 1.3])
def test_a_penalised_text_equals_generate(model: Any, penalty: float) -> None:
    prompt = random_ids(30, seed=1)
    output = model.generate(prompt, repetition_penalty=penalty, max_new_tokens=60, do_sample=False)
    cache = LaCache(model, policy=Full())
    sampling = Sampling(repetition_penalty=penalty)
    ours = list(stream(model, prompt, cache, max_new_tokens=60, sampling=sampling))
    assert ours == output[0, 30:].tolist()
    plain = stream(model, prompt, LaCache(model, policy=Full()), max_new_tokens=60)
    assert ours != list(plain)


def test_the_order_is_that_of_generate(model: Any) -> None:
    options: dict[str, Any] = {
        "temperature": 1.6,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.4,
    }
    prompt = random_ids(30)
    torch.manual_seed(0)
    output = model.generate(
        prompt,
        do_sample=True,
        max_new_tokens=12,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    tokens = output.sequences[0].tolist()
    sampler = Sampler(Sampling(**options))
    sampler.see(prompt)
    for step, (logits, scores) in enumerate(zip(output.logits, output.scores, strict=True)):
        if step:
            sampler.see(torch.tensor(tokens[30 + step - 1]))
        torch.testing.assert_close(
            sampler.probabilities(logits), scores.softmax(-1), rtol=0, atol=0
        )


@given(prompt=TOKENS, seed=st.integers(0, 99), num_new=st.integers(0, 30))
def test_the_tokens_seen_are_distinct_however_long_the_text(
    prompt: list[int], seed: int, num_new: int
) -> None:
    sampler = Sampler(Sampling(temperature=2.0, seed=seed))
    sampler.see(torch.tensor(prompt))
    chosen = [sampler.choose(torch.arange(8.0)[None]) for _ in range(num_new)]
    assert sampler.state().seen.tolist() == sorted({*prompt, *chosen})


DRAWING = Sampling(temperature=1.0, top_p=0.99, repetition_penalty=1.2, seed=5)
GREEDY = Sampling(repetition_penalty=1.2)


def started(sampling: Sampling) -> Sampler:
    """A sampler in the middle of a text."""
    sampler = Sampler(sampling)
    sampler.see(torch.tensor([[3, 1, 3]]))
    written(sampler, 7, text=0)
    return sampler


def written(sampler: Sampler, num_new: int, *, text: int) -> list[int]:
    """Tokens of one of two texts, of which each has logits of its own."""
    logits = torch.randn(num_new, 1, 64, generator=torch.Generator().manual_seed(text))
    return [sampler.choose(row) for row in logits]


@pytest.mark.parametrize("sampling", [DRAWING, GREEDY])
def test_a_restored_sampler_goes_on_identically(sampling: Sampling) -> None:
    sampler = started(sampling)
    state = sampler.state()
    rest = written(sampler, 40, text=1)
    restored = Sampler(replace(sampling, seed=None))
    restored.restore(state)
    assert written(restored, 40, text=1) == rest
    assert torch.equal(restored.state().seen, sampler.state().seen)
    assert written(started(sampling), 40, text=1) == rest
    assert written(Sampler(sampling), 40, text=1) != rest


def test_a_state_stays_as_it_was() -> None:
    sampler = started(DRAWING)
    state = sampler.state()
    assert state.generator is not None
    copies = state.generator.clone(), state.seen.clone()
    written(sampler, 40, text=1)
    sampler.see(torch.arange(60))
    assert torch.equal(state.generator, copies[0])
    assert torch.equal(state.seen, copies[1])
    assert state.generator.dtype == torch.uint8
    assert (state.seen.dtype, state.seen.ndim) == (torch.int64, 1)


@pytest.mark.parametrize("sampling", [DRAWING, GREEDY])
def test_forks_are_independent(sampling: Sampling) -> None:
    whole = written(started(sampling), 40, text=1)
    sampler = started(sampling)
    one, other = sampler.fork(), sampler.fork()
    written(one, 25, text=2)
    one.see(torch.arange(64))
    assert written(other, 40, text=1) == whole
    assert written(sampler, 40, text=1) == whole
    assert written(one, 40, text=1) != whole


def test_a_text_goes_on_in_another_way_with_a_new_seed() -> None:
    sampler = started(DRAWING)
    other = Sampler(replace(DRAWING, seed=6))
    other.restore(SamplerState(generator=None, seen=sampler.state().seen))
    assert torch.equal(other.state().seen, sampler.state().seen)
    again = Sampler(replace(DRAWING, seed=6))
    again.see(sampler.state().seen)
    rest = written(other, 40, text=1)
    assert rest == written(again, 40, text=1)
    assert rest != written(sampler, 40, text=1)


def test_a_greedy_state_has_no_random_numbers() -> None:
    assert started(GREEDY).state().generator is None


def test_a_state_of_another_kind_is_refused() -> None:
    seen = torch.tensor([1, 2])
    with pytest.raises(InputError, match=r"seen of a sampler's state is torch.float32 \(2,\)"):
        SamplerState(generator=None, seen=seen.float())
    with pytest.raises(InputError, match=r"generator of a sampler's state is torch.int64"):
        SamplerState(generator=seen, seen=seen)
    state = SamplerState(generator=torch.zeros(9, dtype=torch.uint8), seen=seen)
    sampler = started(DRAWING)
    before = sampler.state()
    with pytest.raises(InputError, match=r"the 9 bytes of the random numbers' state"):
        sampler.restore(state)
    assert torch.equal(sampler.state().seen, before.seen)


def test_a_seed_does_not_depend_on_other_samplers() -> None:
    alone = written(Sampler(DRAWING), 40, text=1)
    one, other = Sampler(DRAWING), Sampler(replace(DRAWING, seed=9))
    logits = torch.randn(40, 1, 64, generator=torch.Generator().manual_seed(1))
    together = [(one.choose(row), other.choose(row)) for row in logits]
    assert [token for token, _ in together] == alone
    assert [token for _, token in together] != alone


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(broken: float) -> None:
    sampler = Sampler(Sampling(temperature=0.7, top_p=0.95, seed=0))
    with pytest.raises(ModelError, match=r"not all numbers.*dtype=float32"):
        sampler.choose(torch.tensor([[0.0, broken, 1.0]]))


def test_the_strongest_penalty_does_not_overflow() -> None:
    for penalty in (0.01, 100):
        sampler = Sampler(Sampling(temperature=0.01, repetition_penalty=penalty, seed=0))
        sampler.see(torch.arange(3))
        assert sampler.choose(torch.tensor([[1e4, -1e4, 2e4]])) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"temperature": 0.001}, "at least 0.01; try temperature=0.7"),
        ({"temperature": None}, "temperature=None must be a number; try temperature=0.7"),
        ({"top_p": "0.9"}, "top_p='0.9' must be a number"),
        ({"min_p": True}, "min_p=True must be a number"),
        ({"repetition_penalty": []}, r"repetition_penalty=\[\] must be a number"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_k": 1.5}, "top_k=1.5 must be an integer"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"min_p": 2.0}, "min_p=2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be from 0.01 to 100"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan"),
        ({"repetition_penalty": float("inf")}, "try repetition_penalty=1.1"),
        ({"seed": -3}, "seed=-3"),
        ({"seed": 2**63}, "seed=9223372036854775808 must be at most"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)

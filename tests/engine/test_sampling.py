import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacache.core.errors import ConfigError
from lacache.engine.sampling import Sampler, Sampling

CPU = torch.device("cpu")
# Apart from each other, so that no two tokens tie.
LOGITS = st.permutations([0.5 * i for i in range(8)])


def slow_probabilities(logits: list[float], s: Sampling) -> list[float]:
    """As the definitions say, one filter after the other."""
    left = {i: logit / s.temperature for i, logit in enumerate(logits)}

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
)
def test_probabilities_equal_the_definition(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    fast = Sampler(sampling, CPU).probabilities(torch.tensor([logits]))[0]
    slow = torch.tensor(slow_probabilities(logits, sampling))
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


@given(logits=LOGITS)
def test_greedy_takes_the_largest(logits: list[float]) -> None:
    choice = Sampler(Sampling(top_k=3, top_p=0.2), CPU).choose(torch.tensor([logits]))
    assert choice == logits.index(max(logits))


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3), CPU)
    logits = torch.tensor([[0.7, 0.2, 0.1, 0.0]]).log()
    counts = [0, 0, 0, 0]
    for _ in range(4000):
        counts[sampler.choose(logits)] += 1
    assert counts[3] == 0
    assert abs(counts[0] / 4000 - 0.7) < 0.04
    assert abs(counts[1] / 4000 - 0.2) < 0.04


def test_the_coldest_temperature_does_not_overflow() -> None:
    sampler = Sampler(Sampling(temperature=0.01, seed=0), CPU)
    assert sampler.choose(torch.tensor([[30.0, -500.0, 400.0]], dtype=torch.bfloat16)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"temperature": 0.001}, "at least 0.01; try temperature=0.7"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_k": 1.5}, "top_k=1.5 must be an integer"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"min_p": 2.0}, "min_p=2.0"),
        ({"seed": -3}, "seed=-3"),
        ({"seed": 2**63}, "seed=9223372036854775808 must be at most"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lacache.calibration.attribution import attributions, rank
from lacache.calibration.emulation import Emulation
from tests.cache.tiny_models import tiny_model

ASK, FACTS = 50, range(40, 48)


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=30))
def test_costs_that_add_up_are_found_at_any_point(weights: list[int]) -> None:
    # The loss is the sum of the weights of what has a window.
    cost = torch.tensor(weights, dtype=torch.float)[:, None]
    for points in ((0.5,), (0.2, 0.8)):
        assert attributions(lambda _point: -cost, points).flatten().tolist() == weights


@given(st.integers(1, 4))
def test_two_points_are_exact_for_a_loss_of_degree_4(degree: int) -> None:
    # The loss is (1 - a) ** degree, so a window costs 1.
    found = attributions(lambda a: torch.tensor([[-degree * (1 - a) ** (degree - 1)]]))
    assert float(found) == pytest.approx(1, abs=2e-3)


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=30))
def test_heads_come_by_cost_and_ties_by_depth(weights: list[int]) -> None:
    pairs = [(number, 0) for number in range(len(weights))]
    # What lies beyond a layer's heads does not count.
    importance = torch.tensor([[weight, 99] for weight in weights])
    order = rank(importance, [1] * len(weights))
    assert order == sorted(pairs, key=lambda pair: (-weights[pair[0]], pair))


def planted(layer: int, head: int) -> Any:
    """A random Llama with one head that finds the fact in the text and names it after `ASK`."""
    model = tiny_model("llama")
    for block in model.model.layers:
        # The others have a say, but a small one.
        block.self_attn.o_proj.weight.data *= 0.05
        block.mlp.down_proj.weight.data *= 0.05
    fact, asked = 8, 9
    embeddings = model.model.embed_tokens.weight.data
    embeddings[:, :10] = embeddings[:, 24:] = 0.0
    embeddings[[*FACTS, ASK]] = 0.0
    embeddings[list(FACTS), list(range(8))] = embeddings[list(FACTS), fact] = 1.0
    embeddings[ASK, asked] = 1.0
    model.lm_head.weight.data[:] = 0.0
    attention = model.model.layers[layer].self_attn
    # KV heads are 8 wide; two query heads share each. Dimension 3 hardly rotates.
    keys, queries = slice(8 * head, 8 * head + 8), slice(16 * head, 16 * head + 16)
    attention.k_proj.weight.data[keys] = attention.v_proj.weight.data[keys] = 0.0
    attention.q_proj.weight.data[queries] = attention.o_proj.weight.data[:, queries] = 0.0
    attention.k_proj.weight.data[8 * head + 3, fact] = 2.0
    for number in range(8):
        model.lm_head.weight.data[FACTS[number], 24 + number] = 1.0
        attention.v_proj.weight.data[8 * head + number, number] = 1.0
        for query in (16 * head, 16 * head + 8):
            attention.q_proj.weight.data[query + 3, asked] = 2.0
            attention.o_proj.weight.data[24 + number, query + number] = 1.0
    return model


@pytest.mark.parametrize(("layer", "head"), [(1, 1), (3, 0)])
def test_a_planted_retrieval_head_is_found(layer: int, head: int) -> None:
    emulation = Emulation(planted(layer, head), window=4, sinks=1)
    text = torch.randint(2, 40, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = [*text[:3], FACTS[5], *text[3:], ASK]
    last, target = torch.tensor([len(ids) - 1]), torch.tensor([FACTS[5]])
    full, near = (emulation.logits(ids, last, emulation.coefficients(a)) for a in (1, 0))
    assert int(full.argmax()) == FACTS[5]
    assert int(near.argmax()) != FACTS[5] or float(near.max()) < 0.5

    def gradient(point: float) -> torch.Tensor:
        return emulation.gradient(ids, last, target, emulation.coefficients(point))[1]

    cost = attributions(gradient)
    assert rank(cost, emulation.num_heads)[0] == (layer, head)
    assert float(cost[layer, head] / cost.abs().sum()) > 0.8

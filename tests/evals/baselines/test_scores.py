"""Each score against its formula in plain loops, on random numbers."""

import math
from itertools import pairwise
from statistics import fmean

import torch
from hypothesis import given
from hypothesis import strategies as st

from lacache.evals.baselines import H2O, TOVA, KeyDiff, Knorm, LagKV, SnapKV
from lacache.evals.baselines.policy import best
from tests.evals.baselines.slow_scored import keydiff_numbers, lagkv_shares, pooled_at

SEEDS = st.integers(0, 2**31)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights_of(seed: int, pieces: list[int], heads: int = 2, groups: int = 2) -> list[torch.Tensor]:
    """Causal attention [H, G, Q, N] of pieces of a text that is never evicted from."""
    found = []
    num_keys = 0
    for i, num_new in enumerate(pieces):
        num_keys += num_new
        scores = random(seed + i, heads, groups, num_new, num_keys)
        hidden = torch.ones(num_new, num_keys).triu(num_keys - num_new + 1).bool()
        found.append(scores.masked_fill(hidden, -math.inf).softmax(dim=-1))
    return found


def whole(pieces: list[torch.Tensor]) -> torch.Tensor:
    """The same as one [H, G, N, N]."""
    num_keys = pieces[-1].shape[-1]
    queries = [torch.nn.functional.pad(p, (0, num_keys - p.shape[-1])) for p in pieces]
    return torch.cat(queries, dim=2)


@given(SEEDS, st.integers(1, 12), st.integers(1, 5))
def test_knorm(seed: int, num_held: int, width: int) -> None:
    keys = random(seed, 2, num_held, width)
    wanted = [[-math.hypot(*key) for key in head] for head in keys.tolist()]
    torch.testing.assert_close(
        Knorm().score(keys, keys), torch.tensor(wanted), atol=1e-5, rtol=1e-5
    )


@given(SEEDS, st.integers(1, 12), st.integers(2, 5))
def test_keydiff(seed: int, num_held: int, width: int) -> None:
    keys = random(seed, 2, num_held, width)
    wanted = [keydiff_numbers(head) for head in keys.tolist()]
    torch.testing.assert_close(
        KeyDiff().score(keys, keys), torch.tensor(wanted), atol=1e-4, rtol=1e-4
    )


@given(SEEDS, st.integers(0, 4), st.integers(2, 5), st.integers(2, 4), st.integers(0, 4))
def test_lagkv(seed: int, sinks: int, lag: int, partitions: int, more: int) -> None:
    num_held = sinks + lag * partitions + more % lag
    keys, values = random(seed, 2, num_held, 3), random(seed + 1, 2, num_held, 3)
    found = LagKV(sinks=sinks, lag=lag).score(keys, values).tolist()
    for scores, k, v in zip(found, keys.tolist(), values.tolist(), strict=True):
        stop = sinks + (partitions - 1) * lag
        assert set(scores[:sinks] + scores[stop:]) == {1.0}
        for i, shares in enumerate(lagkv_shares(k, v, sinks, lag)):
            start = sinks + i * lag
            ranks = [round(score * lag) for score in scores[start : start + lag]]
            in_order = [shares[ranks.index(rank)] for rank in range(lag)]
            assert all(a <= b + 1e-5 for a, b in pairwise(in_order))


def test_lagkv_gives_numbers_where_a_channel_never_changes() -> None:
    keys = torch.ones(1, 8, 3, dtype=torch.bfloat16)
    assert sorted(LagKV(sinks=0, lag=4).score(keys, keys)[0, :4].tolist()) == [0, 0.25, 0.5, 0.75]


@given(SEEDS, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 8))
def test_the_last_queries_do_not_depend_on_how_a_text_is_cut(
    seed: int, pieces: list[int], window: int
) -> None:
    cut = weights_of(seed, pieces)
    memory = None
    for piece in cut:
        memory = SnapKV(window=window).remember(memory, piece)
    assert memory is not None
    queries = whole(cut)[:, :, -window:]
    wanted = [
        [[fmean(g) for g in zip(*row, strict=True)] for row in zip(*h, strict=True)]
        for h in queries.tolist()
    ]
    torch.testing.assert_close(memory, torch.tensor(wanted))


@given(SEEDS, st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_attention_is_summed_over_queries(seed: int, pieces: list[int]) -> None:
    cut = weights_of(seed, pieces)
    memory = None
    for piece in cut:
        memory = H2O().remember(memory, piece)
    assert memory is not None
    wanted = [
        [fmean(sum(row[n] for row in group) for group in head) for n in range(len(head[0][0]))]
        for head in whole(cut).tolist()
    ]
    torch.testing.assert_close(memory[:, 0], torch.tensor(wanted))


@given(SEEDS, st.integers(1, 12))
def test_tova_is_the_mean_over_all_heads(seed: int, num_held: int) -> None:
    weights = weights_of(seed, [num_held])[0]
    wanted = [
        fmean(weights[h, g, -1, n].item() for h in range(2) for g in range(2))
        for n in range(num_held)
    ]
    found = TOVA().score(TOVA().remember(None, weights))
    torch.testing.assert_close(found, torch.tensor([wanted, wanted]))


@given(SEEDS, st.integers(1, 4), st.integers(1, 12), st.sampled_from([1, 3, 5]))
def test_snapkv_pools_the_mean_of_a_window(
    seed: int, window: int, before: int, kernel: int
) -> None:
    weights = weights_of(seed, [before + window])[0]
    policy = SnapKV(window=window, kernel=kernel)
    found = policy.score(policy.remember(None, weights))
    for head in range(2):
        mean = [
            fmean(weights[head, g, -1 - w, n].item() for g in range(2) for w in range(window))
            for n in range(before)
        ]
        wanted = [pooled_at(mean, n, kernel) for n in range(before)] + [math.inf] * window
        torch.testing.assert_close(found[head], torch.tensor(wanted))


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, math.inf]), min_size=1, max_size=12),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_the_best_are_kept_and_of_equals_the_newer(
    numbers: list[float], sinks: int, protected: int, free: int
) -> None:
    num_held = len(numbers)
    sinks = min(sinks, num_held)
    protected = min(protected, num_held - sinks)
    count = min(num_held, sinks + protected + free)
    may_go = sorted(range(sinks, num_held - protected), key=lambda s: (numbers[s], s))
    wanted = sorted(set(range(num_held)) - set(may_go[: num_held - count]))
    if any(math.isinf(numbers[slot]) for slot in may_go[: num_held - count]):
        return  # a score that must stay was asked to go
    found = best(torch.tensor([numbers]), count, sinks=sinks, protected=protected)
    assert found.tolist() == [wanted]

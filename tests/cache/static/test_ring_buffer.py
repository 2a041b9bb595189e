"""Ring buffers against lists of all tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.cache.static.rings import RingBuffer
from lacache.models.model_info import SlidingLayer

CPU = torch.device("cpu")
HEADS, KEY_SIZE, VALUE_SIZE = 2, 3, 1


def make(window: int, batch_size: int = 2) -> RingBuffer:
    layer = SlidingLayer(0, window, HEADS, KEY_SIZE, VALUE_SIZE)
    return RingBuffer(layer, batch_size, torch.float32, CPU)


def states(num_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values [1, H, N, D] that all differ."""
    shapes = ((1, HEADS, num_tokens, KEY_SIZE), (1, HEADS, num_tokens, VALUE_SIZE))
    keys, values = (torch.arange(torch.Size(s).numel()).view(s).float() + 1 for s in shapes)
    return keys, values


@given(st.integers(1, 9), st.lists(st.tuples(st.booleans(), st.integers(1, 25)), max_size=6))
@settings(max_examples=100)
def test_a_ring_has_the_window_before_the_next_token(
    window: int, chunks: list[tuple[bool, int]]
) -> None:
    ring = make(window)
    ring.insert(0, 0, *(t + 100 for t in states(3)))
    keys, values = states(sum(length for _, length in chunks))
    seen = 0
    for one_by_one, length in chunks:
        end = seen + length
        if one_by_one:
            active = torch.tensor([False, True])
            for token in range(seen, end):
                slots = torch.tensor([1, token]) % window
                one = (t[:, :, token : token + 1].expand(2, -1, -1, -1) for t in (keys, values))
                ring.insert_one(slots, active, *one)
        else:
            ring.insert(1, seen, keys[:, :, seen:end], values[:, :, seen:end])
        seen = end
        first = max(0, seen - (window - 1))
        for found, expected in zip(ring.before(1, seen), (keys, values), strict=True):
            assert torch.equal(found, expected[:, :, first:seen])
    for found, expected in zip(ring.before(0, 3), states(3), strict=True):
        assert torch.equal(found, expected[:, :, max(0, 4 - window) :] + 100)


def test_a_fork_has_the_tokens_of_the_original() -> None:
    ring = make(4)
    keys, values = states(6)
    ring.insert(0, 0, keys, values)
    ring.fork(0, 1)
    ring.insert(0, 6, *(t + 50 for t in states(3)))
    found, _ = ring.before(1, 6)
    assert torch.equal(found, keys[:, :, 3:])

"""Memory that is known before it is taken, and what fixed memory cannot hold."""

from dataclasses import replace
from functools import cache as memoize
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BambaConfig

from lacache.cache.static.layout import CacheLayout
from lacache.engine import runner
from lacache.engine.runner import Runner
from lacache.errors import ConfigError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.model_info import model_info
from lacache.policies import Full, Group, Groups, Ladder, Streaming
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import FAMILIES, SHAPE, tiny_model
from tests.policies.sized import Sized, bind

LADDER = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
AT_SLOTS = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3, positions="slots"))


@memoize
def model(family: str) -> Any:
    return tiny_model(family)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data(), rows=st.integers(1, 4))
@settings(max_examples=3)
def test_bytes_are_those_of_the_buffers(family: str, data: Any, rows: int) -> None:
    info = model_info(model(family))
    heads = info.num_heads
    # Attention sinks are a number for each head, which by_group of a layer cannot share.
    sized = LADDER if family == "gpt-oss" else data.draw(sized_policies(len(heads), heads[0]))
    bound = bind(sized, heads)
    if info.fixed_length is not None:  # a larger capacity is refused
        assume(max(group.schedule.capacity for group in bound.groups) <= info.fixed_length)
    cache = Runner(model(family), bound, rows, None).cache
    assert CacheLayout(info, bound).bytes_per_sequence * rows == cache.num_bytes
    tensors = [t for storage in cache.storages() for t in storage.flat]
    assert len({t.data_ptr() for t in tensors}) == len(tensors)
    assert sum(t.untyped_storage().nbytes() for t in tensors) == cache.num_bytes


def layout(family: str, sized: Sized = LADDER) -> CacheLayout:
    info = model_info(model(family))
    return CacheLayout(info, bind(sized, info.num_heads))


def test_bytes_by_hand() -> None:
    # 2 KV heads of 8 numbers in 4 bytes, and the keys of 2 sinks twice.
    assert layout("llama").bytes_per_sequence == 5 * (16 * 2 + 2) * 2 * 8 * 4
    # All keys twice.
    assert layout("llama", AT_SLOTS).bytes_per_sequence == 5 * 16 * 3 * 2 * 8 * 4
    # A layer without positions has its keys once.
    without = layout("smollm3", AT_SLOTS).bytes_per_sequence
    assert without == (4 * 3 + 2) * 16 * 2 * 8 * 4
    # Three windows of 8 tokens, keys once.
    mixed = layout("gemma3", AT_SLOTS).bytes_per_sequence
    assert mixed == (4 * 3 * 16 + 3 * 2 * 8) * 2 * 8 * 4
    half = model_info(tiny_model("llama").bfloat16())
    narrow = CacheLayout(half, bind(AT_SLOTS, half.num_heads))
    assert narrow.bytes_per_sequence == 5 * 16 * 3 * 2 * 8 * 2


@pytest.mark.parametrize(
    "policy",
    [Full(), Groups((Group(Streaming(evict_batch=1), (0, 1, 2), 9), Group(Full(), (3, 4))))],
    ids=str,
)
def test_a_policy_that_keeps_everything(policy: Any) -> None:
    with pytest.raises(ConfigError, match=r"keeps every token.*try policy='balanced'.*use LaCache"):
        CacheLayout(model_info(model("llama")), bind((None, policy), (2,) * 5))


def test_layers_with_a_state() -> None:
    torch.manual_seed(0)
    config = BambaConfig(
        **SHAPE | {"num_hidden_layers": 6},
        attn_layer_indices=[1, 3, 5],
        mamba_d_state=8,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_n_groups=1,
    )
    tiny = AutoModelForCausalLM.from_config(config).eval()
    # Some versions of transformers cannot prefill such a model in chunks at all.
    message = "layer 0 is linear attention.*use LaCache|in chunks"
    with pytest.raises(UnsupportedModelError, match=message):
        Runner(tiny, bind((9, Streaming(evict_batch=1)), (2,) * 3), 1, None)


APART = (
    None,
    Groups(
        (
            Group(Streaming(evict_batch=1), (1, 2, 3, (0, 0)), 9),
            Group(Streaming(evict_batch=1), ((0, 1),), 12),
        )
    ),
)


def test_parts_of_a_layer_cannot_share_sinks_of_attention() -> None:
    info = model_info(model("gpt-oss"))
    with pytest.raises(UnsupportedOperationError, match=r"layer 1 .*use groups of whole layers"):
        CacheLayout(info, bind(APART, info.num_heads))
    whole = Groups(
        (Group(Streaming(evict_batch=1), (1, 2, 3), 9), Group(Streaming(evict_batch=1), (0,), 12))
    )
    assert CacheLayout(info, bind((None, whole), info.num_heads)).bytes_per_sequence > 0
    gemma = model_info(model("gemma3"))
    assert CacheLayout(gemma, bind(APART, gemma.num_heads)).bytes_per_sequence > 0


def test_sinks_of_another_name_are_refused_where_they_are_met() -> None:
    info = model_info(tiny_model("gpt-oss"))
    assert all(layer.has_sinks for layer in info.growing)
    unknown = replace(info, growing=tuple(replace(g, has_sinks=False) for g in info.growing))
    tiny = tiny_model("gpt-oss")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "model_info", lambda _: unknown)
        running = Runner(tiny, bind(APART, info.num_heads), 1, None)
    with pytest.raises(UnsupportedOperationError, match="use groups of whole layers"):
        running.decode([3], [0])

"""Chunks that are planned whole, against a forward for each sub-chunk."""

from functools import cache as memoize
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3nTextConfig

from lacache.cache.static.chunk_plan import MAX_SUB_CHUNKS
from lacache.cache.static.sequence_tensors import (
    SequenceTensors,
    export_sequence,
    restore_sequence,
)
from lacache.cache.static.whole_chunk import WholeChunk
from lacache.cache.static.whole_chunk_layer import WholeChunkLayer
from lacache.common.validation import KV_DTYPES
from lacache.engine.runner import Runner
from lacache.errors import UnsupportedModelError
from lacache.models.model_info import ModelInfo
from lacache.policies import (
    Ladder,
    ModelShape,
    RetrievalHeads,
    Streaming,
    bind_policy,
    parse_policy,
)
from lacache.policies.head_profile import read_profile
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import SHAPE, VOCAB, random_ids, tiny_model
from tests.engine.ragged import new_runner
from tests.policies.sized import Sized

ONE_BY_ONE = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=1))
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
"""Far below a wrong slot or position; rotations are computed in float32."""


@memoize
def model(family: str, **changes: Any) -> Any:
    return tiny_model(family, **changes).double()


def whole(runner: Runner, tokens: Tensor, batch_slot: int = 0) -> Tensor:
    """Logits [Q, V] of a chunk in as few forwards as possible."""
    logits = []
    while len(tokens):
        length = runner.cache.chunk_length(batch_slot, len(tokens))
        logits.append(runner.prefill_all_logits(batch_slot, tokens[:length]))
        tokens = tokens[length:]
    return torch.cat(logits)


def by_sub_chunk(runner: Runner, tokens: Tensor, batch_slot: int = 0) -> Tensor:
    """The slow twin: a forward for each sub-chunk."""
    logits = []
    while len(tokens):
        room = runner.cache.sequences[batch_slot].room()
        logits.append(runner.prefill_all_logits(batch_slot, tokens[:room]))
        tokens = tokens[room:]
    return torch.cat(logits)


def by_age(runner: Runner) -> SequenceTensors:
    """The first sequence with tokens oldest first: ways differ in the slots that they use again."""
    tensors = export_sequence(runner.cache, 0)
    groups = enumerate(runner.cache.sequences[0].groups)
    order = {index: group.original_positions().argsort(dim=1) for index, group in groups}
    for index, slots in order.items():
        name = f"group.{index}.original_positions"
        tensors[name] = tensors[name].gather(1, slots)
    for layer, by_group in runner.cache.kv_heads.items():
        for index, heads in enumerate(by_group):
            slots = order[heads.group][heads.pattern]
            moving = min(heads.num_unrotated, len(slots))
            assert torch.equal(slots[:moving].sort().values, torch.arange(moving))
            for name in tensors:
                if name.startswith(f"layer.{layer}.heads.{index}.values"):
                    tensors[name] = tensors[name][:, slots]
                elif name.startswith(f"layer.{layer}.heads.{index}.keys"):
                    tensors[name] = tensors[name][:, slots[moving:] - moving]
    return tensors


def check_equal(one: Runner, other: Runner) -> None:
    """Compare the counts, positions, keys and values of the first sequences."""
    found, expected = by_age(one), by_age(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda m, n=name: n + m, **CLOSE)


@given(
    sized=sized_policies(5, 2),
    family=st.sampled_from(["llama", "smollm3"]),
    kv_dtype=st.sampled_from([None, *sorted(KV_DTYPES)]),
    trained_length=st.sampled_from([40, 4096]),
    chunks=st.lists(st.integers(1, 70), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_a_chunk_equals_its_sub_chunks(
    sized: Sized, family: str, kv_dtype: str | None, trained_length: int, chunks: list[int]
) -> None:
    tiny = model(family, max_position_embeddings=trained_length)
    planned, twin = (new_runner(tiny, sized, 1, None, kv_dtype) for _ in range(2))
    ids = random_ids(sum(chunks))[0]
    for tokens in ids.split(chunks):
        torch.testing.assert_close(whole(planned, tokens), by_sub_chunk(twin, tokens), **CLOSE)
        check_equal(planned, twin)


@given(
    sized=sized_policies(4, 2),
    kv_dtype=st.sampled_from([None, *sorted(KV_DTYPES)]),
    chunks=st.lists(st.integers(1, 70), min_size=1, max_size=4),
)
@settings(max_examples=30, deadline=None)
def test_sliding_layers_see_a_chunk_as_its_sub_chunks(
    sized: Sized, kv_dtype: str | None, chunks: list[int]
) -> None:
    planned, twin = (new_runner(model("gemma3"), sized, 1, None, kv_dtype) for _ in range(2))
    ids = random_ids(sum(chunks))[0]
    for tokens in ids.split(chunks):
        torch.testing.assert_close(whole(planned, tokens), by_sub_chunk(twin, tokens), **CLOSE)
        check_equal(planned, twin)


@given(sized=sized_policies(5, 2), chunks=st.lists(st.integers(1, 60), min_size=2, max_size=4))
@settings(max_examples=20, deadline=None)
def test_snapshots_between_chunks_and_decode_steps(sized: Sized, chunks: list[int]) -> None:
    """Another sequence moves its own regions meanwhile."""
    planned, twin = (new_runner(model("llama"), sized, 2, None) for _ in range(2))
    for number, length in enumerate(chunks):
        tokens = random_ids(length, seed=number)[0]
        whole(planned, tokens)
        by_sub_chunk(twin, tokens)
        tensors = export_sequence(planned.cache, 0)
        whole(planned, tokens.flip(0), batch_slot=1)
        by_sub_chunk(twin, tokens.flip(0), batch_slot=1)
        planned.cache.clear(0)
        restore_sequence(planned.cache, 0, tensors)
        for active in ([1], [0, 1]):
            found, expected = (each.decode([5, 6], active)[active] for each in (planned, twin))
            torch.testing.assert_close(found, expected, **CLOSE)
        check_equal(planned, twin)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("sized", [ONE_BY_ONE, (16, Streaming(sinks=2, evict_batch=4))])
def test_linear_layers_run_once_over_a_chunk(family: str, sized: Sized) -> None:
    runner = new_runner(model(family), sized, 1, None)
    lengths: list[int] = []
    for module in runner._model.modules():
        if type(module).__name__.endswith("MLP"):
            module.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
            break
    tokens = random_ids(40)[0]
    assert runner.cache.chunk_length(0, 40) == 40
    runner.prefill(0, tokens)
    assert lengths == [40]
    assert runner.cache.sequences[0].groups[0].num_compactions >= 6


def test_a_plan_of_keys_that_move_has_a_limited_number_of_sub_chunks() -> None:
    policy = Streaming(sinks=2, evict_batch=1, positions="slots")
    runner = new_runner(model("llama"), (16, policy), 1, None)
    # The first sub-chunk fills the cache.
    assert runner.cache.chunk_length(0, 1000) == 16 + MAX_SUB_CHUNKS - 1
    whole(runner, random_ids(100)[0])
    assert runner.cache.chunk_length(0, 1000) == MAX_SUB_CHUNKS


def test_a_chunk_ends_where_keys_are_renumbered() -> None:
    policy = Streaming(sinks=2, evict_batch=4)
    runner = new_runner(model("llama", max_position_embeddings=40), (16, policy), 1, None)
    lengths = []
    for _ in range(4):
        lengths.append(runner.cache.chunk_length(0, 100))
        runner.prefill(0, random_ids(lengths[-1])[0])
    # Positions start over from the slots in use, 12 of them, whenever 40 of them are used up.
    assert lengths == [40, 28, 28, 28]


@pytest.mark.parametrize("heads", [((0, 0), (0, 1)), ((4, 0), (4, 1))])
def test_a_chunk_ends_where_layers_would_not_fit_beside_each_other(heads: Any) -> None:
    """The pool is as large as the policy needs, and no layer may grow into another's slots."""
    policy = RetrievalHeads(heads=(heads,), window=0.5, sinks=2)
    runner, twin = (new_runner(model("llama"), (48, policy), 1, None) for _ in range(2))
    num_bytes = runner.cache.num_bytes
    lengths = []
    ids = random_ids(300)[0]
    while len(ids):
        length = runner.cache.chunk_length(0, min(60, len(ids)))
        found = runner.prefill_all_logits(0, ids[:length])
        torch.testing.assert_close(found, by_sub_chunk(twin, ids[:length]), **CLOSE)
        ids = ids[length:]
        lengths.append(length)
    assert runner.cache.num_bytes == num_bytes
    # The last layers take over what the others have freed by then.
    assert (min(lengths[:-1]) < 60) == (heads == ((0, 0), (0, 1)))
    assert max(lengths) == 60


@pytest.mark.parametrize(
    ("name", "shortened"),
    [("smollm2-135m-instruct", [192]), ("qwen2.5-coder-1.5b-instruct", [192, 64, 64, 64, 64])],
)
def test_chunks_of_shipped_profiles_mostly_stay_whole(name: str, shortened: list[int]) -> None:
    folder = files("lacache.policies") / "profiles"
    profile = read_profile(Path(str(folder / f"{name}.json")))
    num_heads = profile.num_heads[0]
    tiny = tiny_model(
        "llama",
        num_hidden_layers=profile.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=8,
    )
    shape = ModelShape(profile.num_heads, profile)
    policy = parse_policy("balanced")
    bound = bind_policy(policy, 512, shape, bytes_per_token=1, prompt_tokens=1)
    cache = Runner(tiny, bound, 1, None).cache
    [sequence] = cache.sequences
    lengths = []
    while sequence.num_seen < 3500:
        length = cache.chunk_length(0, 256)
        sequence.begin()
        sequence.is_changing = False
        sequence.follow(WholeChunk(sequence, length, cache.device).after)
        lengths.append(length)
    assert [length for length in lengths if length < 256] == shortened


def test_one_layer_at_a_time_holds_its_chunk() -> None:
    runner = new_runner(model("gemma3"), ONE_BY_ONE, 1, None)
    begin, caches = runner.cache.begin_prefill, []

    def note(*args: int) -> Any:
        caches.append(begin(*args))
        return caches[-1]

    held: list[list[str]] = []

    def look(*_: Any) -> None:
        layers = caches[-1][0].layers
        tensors = [(layer, name) for layer in layers for name in ("_later", "_new", "_moved_sinks")]
        held.append([n for layer, n in tensors if vars(layer).get(n)])

    runner.cache.begin_prefill = note  # type: ignore[method-assign]
    for layer in runner._model.model.layers:
        layer.register_forward_hook(look)
    runner.prefill(0, random_ids(40)[0])
    assert held == [[]] * 7


def test_layers_do_not_hold_what_they_have_stored() -> None:
    runner = new_runner(model("llama"), ONE_BY_ONE, 1, None)
    cache, positions = runner.cache.begin_prefill(0, 10)
    runner._model(
        input_ids=random_ids(10),
        position_ids=positions,
        use_cache=True,
        **{runner._cache_name: cache},
    )
    for layer in cache.layers:
        assert isinstance(layer, WholeChunkLayer)
        assert [states.untyped_storage().nbytes() for states in layer._held()] == [0, 0]


@memoize
def sharing_model() -> Any:
    """The last two layers attend to the keys and values of the two before."""
    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        **SHAPE | {"num_hidden_layers": 6},
        head_dim=8,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        sliding_window=8,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 3,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 6,
    )
    return AutoModelForCausalLM.from_config(config).eval().double()


def test_layers_that_share_keys_end_a_chunk_at_each_compaction() -> None:
    sized = (16, Streaming(sinks=2, evict_batch=4))
    planned, twin = (new_runner(sharing_model(), sized, 1, None) for _ in range(2))
    tokens = random_ids(40)[0]
    assert torch.equal(whole(planned, tokens), by_sub_chunk(twin, tokens))
    assert planned.cache.chunk_length(0, 40) == twin.cache.sequences[0].room()


def test_keys_that_are_shared_unannounced_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = new_runner(sharing_model(), (16, Streaming(sinks=2, evict_batch=4)), 1, None)
    monkeypatch.setattr(ModelInfo, "shares_kv", False)
    assert runner.cache.chunk_length(0, 40) == 40
    with pytest.raises(UnsupportedModelError, match=r"another layer .* chunk_size=1"):
        runner.prefill(0, random_ids(40)[0])
    runner.cache.clear(0)
    runner.prefill(0, random_ids(1)[0])

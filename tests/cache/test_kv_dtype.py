"""Keys and values in fewer bits: LaCache against slow twins and against the engine.

The slow twin is a LaCache in the model's own type. What the model gives it, and what it rotates, is
encoded and decoded before anything else, so it holds and reads numbers that the format can store.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache as memoize
from typing import Any, final

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from lacache import Engine, LaCache, Ladder, Streaming, stream
from lacache.cache import codecs as formats
from lacache.cache.codecs import Codec, Stored, find_codecs
from lacache.cache.encoded import EncodedStates, bytes_per_token
from lacache.cache.layers import BoundedLayer
from lacache.common.validation import KV_DTYPES
from lacache.errors import ConfigError, UnsupportedOperationError
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.models.rotary import Rotation
from lacache.policies import Full
from tests.cache.test_exactness import RENUMBERED, ladders
from tests.cache.test_groups import BY_HEAD
from tests.cache.tiny_models import random_ids, tiny_model
from tests.policies.sized import Sized

NAMES = sorted(KV_DTYPES)
LADDER: Sized = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
AT_SLOTS: Sized = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3, positions="slots"))
SIZED: dict[str, Sized] = {
    "ladder": LADDER,
    "slots": AT_SLOTS,
    "heads apart": BY_HEAD,
    "full": (None, Full()),
}

names = pytest.mark.parametrize("name", NAMES)


@memoize
def model(family: str = "llama") -> Any:
    return tiny_model(family)


@contextmanager
def rounded(tiny: Any, cache: Any, name: str) -> Iterator[None]:
    """Round all that a cache in the model's own type is given, and that it rotates."""
    by_layer = {
        layer.index: find_codecs(name, torch.float32, None, layer.key_center)
        for layer in model_info(tiny).growing
    }
    update, rotate = cache.update, Rotation.rotate
    rotated_by: list[Codec] = []  # of the layer that is updated now

    def through(codec: Codec, states: Tensor) -> Tensor:
        return codec.decode(codec.encode(states))

    def updated(keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **more: Any) -> Any:
        if layer_idx in by_layer:
            key_codec, value_codec = by_layer[layer_idx]
            keys, values = through(key_codec, keys), through(value_codec, values)
            rotated_by[:] = [key_codec]
        return update(keys, values, layer_idx, *args, **more)

    cache.update = updated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rotation, "rotate", lambda *args: through(rotated_by[0], rotate(*args)))
        yield


@torch.no_grad()
def read(tiny: Any, cache: Any, ids: Tensor, chunks: int | list[int]) -> Tensor:
    """Logits [B, Q, V] of all tokens."""
    return torch.cat(
        [tiny(c, **cache_argument(tiny, cache)).logits for c in ids.split(chunks, dim=1)], dim=1
    )


def both(tiny: Any, sized: Sized, name: str, ids: Tensor, chunks: Any, **options: Any) -> Any:
    """Logits of the cache and of its twin, and both caches."""
    fast, slow = LaCache(tiny, *sized, kv_dtype=name, **options), LaCache(tiny, *sized, **options)
    found = read(tiny, fast, ids, chunks)
    with rounded(tiny, slow, name):
        return found, read(tiny, slow, ids, chunks), fast, slow


@given(
    ladders(),
    st.sampled_from(NAMES),
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.integers(0, 5),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_ladder_in_any_chunks(sized: Sized, name: str, chunks: list[int], seed: int) -> None:
    ids = random_ids(sum(chunks), seed=seed)
    found, expected, fast, slow = both(model(), sized, name, ids, chunks)
    assert torch.equal(found, expected)
    assert [fast.kept_tokens(i) for i in range(5)] == [slow.kept_tokens(i) for i in range(5)]
    for one, other in zip(fast.layers, slow.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@names
@pytest.mark.parametrize("prefill", ["chunked", "dense"])
@pytest.mark.parametrize("policy", SIZED)
@pytest.mark.parametrize("family", ["llama", "phi3", "smollm3"])
def test_policies_and_families(family: str, policy: str, prefill: str, name: str) -> None:
    ids = random_ids(70, batch_size=2)
    first = [40, *[5] * 6]
    found, expected, *_ = both(model(family), SIZED[policy], name, ids, first, prefill=prefill)
    assert torch.equal(found, expected)


@names
@pytest.mark.parametrize("policy", RENUMBERED)
def test_renumbered_keys_are_encoded_again(policy: str, name: str) -> None:
    tiny = tiny_model("llama", max_position_embeddings=30)
    found, expected, *_ = both(tiny, RENUMBERED[policy], name, random_ids(160), 7)
    assert torch.equal(found, expected)


@names
@pytest.mark.parametrize("family", ["gemma3", "gpt-oss"])
def test_sliding_layers_stay_in_the_models_type(family: str, name: str) -> None:
    tiny = model(family)
    found, expected, fast, slow = both(tiny, LADDER, name, random_ids(60), 9)
    assert torch.equal(found, expected)
    native = [i for i in range(len(fast.layers)) if i not in fast.growing_layers]
    held = sum(fast.layers[i].keys.nbytes + fast.layers[i].values.nbytes for i in native)
    report = fast.report()
    assert report.bytes == held + report.num_cached * bytes_per_token(model_info(tiny), name)
    assert report.bytes < slow.report().bytes


@names
@pytest.mark.parametrize("prefill", ["chunked", "dense"])
def test_full_is_transformers_own_cache_of_rounded_states(prefill: Any, name: str) -> None:
    tiny, ids = model(), random_ids(60)
    cache, own = LaCache(tiny, policy="full", prefill=prefill, kv_dtype=name), DynamicCache()
    found = read(tiny, cache, ids, [30, 1, 29])
    with rounded(tiny, own, name):
        assert torch.equal(found, read(tiny, own, ids, [30, 1, 29]))
    assert cache.report().bytes == 60 * bytes_per_token(model_info(tiny), name)


@names
def test_a_dense_prefill_that_fits_is_a_chunked_one(name: str) -> None:
    ids = random_ids(40)
    found = [
        read(model(), LaCache(model(), 60, LADDER[1], prefill=p, kv_dtype=name), ids, [30, 10])
        for p in ("chunked", "dense")
    ]
    assert torch.equal(*found)


@names
@pytest.mark.parametrize(
    ("family", "policy"),
    [("llama", "ladder"), ("llama", "slots"), ("llama", "heads apart"), ("gemma3", "ladder")],
)
def test_the_text_is_the_engines(family: str, policy: str, name: str) -> None:
    tiny, sized = model(family), SIZED[policy]
    prompt = random_ids(60, seed=1)
    cache = LaCache(tiny, *sized, kv_dtype=name)
    found = list(stream(tiny, prompt, cache, max_new_tokens=40))
    assert cache.report().compactions > 10
    engine = Engine(tiny, *sized, kv_dtype=name)
    assert found == list(engine.open().generate(prompt[0], max_new_tokens=40))
    assert engine.held_bytes >= cache.report().held_bytes


@final
@dataclass(frozen=True)
class CountingCodec(Codec):
    """Counts the tokens that are encoded."""

    inner: Codec
    encoded: list[int]

    def parts(self, size: int) -> tuple[tuple[torch.dtype, int], ...]:
        return self.inner.parts(size)

    def encode(self, states: Tensor) -> Stored:
        self.encoded.append(states.shape[-2])
        return self.inner.encode(states)

    def decode(self, stored: Stored) -> Tensor:
        return self.inner.decode(stored)


def test_each_token_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the two sinks, which move, are rounded again for each forward's attention."""
    counted: dict[str, list[int]] = {"keys": [], "values": []}
    find = formats.find_codecs

    def counting(*args: Any) -> tuple[Codec, Codec]:
        keys, values = find(*args)
        return CountingCodec(keys, counted["keys"]), CountingCodec(values, counted["values"])

    monkeypatch.setattr("lacache.cache.layers.find_codecs", counting)
    cache = LaCache(model(), 16, Streaming(sinks=2, evict_batch=3), kv_dtype="int8")
    read(model(), cache, random_ids(90), 1)
    assert cache.report().compactions > 10
    assert sum(counted["values"]) == 5 * 90
    assert sum(counted["keys"]) == 5 * (90 + 2 * (90 - 16))


def test_what_is_stored_does_not_wear_out() -> None:
    cache = LaCache(model(), *LADDER, kv_dtype="int8")
    read(model(), cache, random_ids(20), 7)
    before = [layer.stored_keys.between(0, 2).stored for layer in cache.layers]
    read(model(), cache, random_ids(200, seed=1), 7)
    for layer, kept in zip(cache.layers, before, strict=True):
        for now, then in zip(layer.stored_keys.between(0, 2).stored, kept, strict=True):
            assert torch.equal(now, then)


@names
@pytest.mark.parametrize("policy", ["ladder", "heads apart"])
def test_sequences_are_repeated_selected_reordered_and_copied(policy: str, name: str) -> None:
    ids = random_ids(60, batch_size=3)
    changes: list[tuple[Callable[[Any], Any], list[int]]] = [
        (lambda c: (c.batch_select_indices(torch.tensor([2, 0])), c.batch_repeat_interleave(2)),
         [2, 2, 0, 0]),
        (lambda c: c.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
        (lambda c: [(layer.offload(), layer.prefetch()) for layer in c.layers], [0, 1, 2]),
    ]  # fmt: skip
    start = LaCache(model(), *SIZED[policy], kv_dtype=name)
    read(model(), start, ids[:, :35], 35)
    held = [one for layer in start.layers for one in layer.by_group]
    for change, rows in changes:
        cache = deepcopy(start)
        change(cache)
        changed = [one for layer in cache.layers for one in layer.by_group]
        for now, before in zip(changed, held, strict=True):
            for one, other in (
                (now.stored_keys, before.stored_keys),
                (now.stored_values, before.stored_values),
            ):
                for found, stored in zip(one.stored, other.stored, strict=True):
                    assert torch.equal(found, stored[rows])
        again = LaCache(model(), *SIZED[policy], kv_dtype=name)
        read(model(), again, ids[rows, :35], 35)
        # A last bit that differs in another batch can tip a number to the next one.
        continued, expected = (read(model(), c, ids[rows, 35:], 5) for c in (cache, again))
        torch.testing.assert_close(continued, expected, atol=0.05, rtol=0)
        assert cache.report() == again.report()


@names
def test_beam_search_scores_are_those_of_the_text(name: str) -> None:
    found = model().generate(
        random_ids(30),
        num_beams=4,
        max_new_tokens=25,
        length_penalty=0.0,
        **cache_argument(model(), LaCache(model(), *BY_HEAD, kv_dtype=name)),
        return_dict_in_generate=True,
        output_scores=True,
    )
    text = found.sequences
    cache = LaCache(model(), *BY_HEAD, kv_dtype=name)
    log_probs = read(model(), cache, text[:, :-1], [30, *[1] * 24]).log_softmax(-1)[:, 29:]
    score = log_probs.gather(2, text[:, 30:, None]).sum()
    torch.testing.assert_close(found.sequences_scores[0], score, atol=0.05, rtol=0)


@names
@pytest.mark.parametrize("policy", ["ladder", "heads apart"])
def test_a_reset_cache_is_as_new(policy: str, name: str) -> None:
    used = LaCache(model(), *SIZED[policy], kv_dtype=name)
    read(model(), used, random_ids(70, batch_size=2), 9)
    used.reset()
    new = LaCache(model(), *SIZED[policy], kv_dtype=name)
    assert used.report() == new.report()
    assert used.report().bytes == 0
    ids = random_ids(50, seed=4)
    assert torch.equal(read(model(), used, ids, 7), read(model(), new, ids, 7))


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_that_are_stored(dtype: torch.dtype, name: str) -> None:
    tiny = tiny_model("llama").to(dtype)
    per_token = 5 * 2 * sum(codec.vector_bytes(8) for codec in find_codecs(name, dtype))
    cache = LaCache(tiny, f"{20 * per_token}B", LADDER[1], kv_dtype=name)
    assert cache.policy.capacity == 20
    peaks: list[int] = []
    cache.prefill(tiny, random_ids(90), lambda _: peaks.append(cache.report().bytes))
    report = cache.report()
    assert report.bytes == report.held_bytes == report.num_cached * per_token
    assert max(peaks) == 20 * per_token


@names
def test_keys_and_values_can_be_read_and_set(name: str) -> None:
    layer = BoundedLayer(None, 0, None, name)  # type: ignore[arg-type]
    assert layer.keys is None
    assert layer.values is None
    assert layer.num_bytes == layer.num_stored() == 0
    states = torch.randn(2, 3, 4, 8)
    layer.keys, layer.values = states, -states
    codecs = find_codecs(name, torch.float32)
    assert torch.equal(layer.keys, codecs[0].decode(codecs[0].encode(states)))
    assert torch.equal(layer.values, codecs[1].decode(codecs[1].encode(-states)))
    assert layer.num_stored() == 4
    assert layer.num_bytes == 2 * 3 * 4 * sum(codec.vector_bytes(8) for codec in codecs)


@given(st.sampled_from([None, *NAMES]), st.data())
@settings(max_examples=30, deadline=None)
def test_selecting_and_appending_are_those_of_plain_states(name: str | None, data: Any) -> None:
    codec, _ = find_codecs(name, torch.float32)
    states = torch.randn(1, 2, data.draw(st.integers(0, 9)), 8)
    held = EncodedStates.encode(states, codec)
    plain = held.decode()
    slots = torch.tensor(
        data.draw(st.lists(st.integers(0, 8).filter(lambda s: s < plain.shape[2]), unique=True)
                  if plain.shape[2] else st.just([])),
        dtype=torch.long,
    )  # fmt: skip
    start = data.draw(st.integers(0, plain.shape[2]))
    found = held.select(slots).append(held.between(start, held.num_slots)).decode()
    assert torch.equal(found, torch.cat([plain[:, :, slots], plain[:, :, start:]], dim=2))
    assert held.select(None) is held
    assert (held.num_slots, held.num_sequences) == (plain.shape[2], 1)


@pytest.mark.parametrize("kv_dtype", ["fp4", "", "torch.int8", torch.int8])
def test_other_types_are_refused(kv_dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_dtype=.* must be None.*; try 'int8'"):
        LaCache(model(), *LADDER, kv_dtype=kv_dtype)


def test_tokens_cannot_be_taken_back_either() -> None:
    cache = LaCache(model(), *LADDER, kv_dtype="int8")
    read(model(), cache, random_ids(9), 9)
    for refused in (cache, cache.layers[0]):
        with pytest.raises(UnsupportedOperationError, match="taking tokens back"):
            refused.crop(-2)

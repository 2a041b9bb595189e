"""The scored cache against transformers' own cache, the product's sink window and a slow twin."""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lacache import LaCache, Streaming
from lacache.cache.codecs import find_codecs
from lacache.cache.encoded import bytes_per_token
from lacache.common.validation import KV_DTYPES
from lacache.errors import (
    ConfigError,
    InputError,
    ModelError,
    UnsupportedModelError,
    UnsupportedOperationError,
)
from lacache.evals.baselines import (
    H2O,
    TOVA,
    KeyDiff,
    KeyPolicy,
    Knorm,
    LagKV,
    ScoredCache,
    ScoredPolicy,
    SnapKV,
)
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from tests.cache.tiny_models import FAMILIES, VOCAB, random_ids, tiny_model
from tests.evals.baselines.slow_scored import (
    Score,
    slow_h2o,
    slow_keydiff,
    slow_knorm,
    slow_lagkv,
    slow_read,
    slow_snapkv,
    slow_tova,
)

TOLERANCE = 1e-4
CAPACITY, EVICT_BATCH, SINKS = 14, 3, 2
POLICIES: dict[str, tuple[ScoredPolicy, Score]] = {
    "knorm": (Knorm(), slow_knorm),
    "keydiff": (KeyDiff(), slow_keydiff),
    "lagkv": (LagKV(lag=3, sinks=SINKS), slow_lagkv(SINKS, 3)),
    "tova": (TOVA(), slow_tova),
    "h2o": (H2O(recent=5), slow_h2o),
    "snapkv": (SnapKV(window=4, kernel=3), slow_snapkv(4, 3)),
}
KEY_POLICIES = ("knorm", "keydiff", "lagkv")


@dataclass(frozen=True)
class Newest(KeyPolicy):
    """The newest tokens stay: the sink window."""

    names: ClassVar = {"newest": {}}

    def protected(self, num_held: int) -> int:
        return 0

    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        return torch.arange(keys.shape[1]).expand(keys.shape[0], -1)


def make(
    model: Any, policy: ScoredPolicy, capacity: Any = CAPACITY, sinks: int = SINKS, **options: Any
) -> ScoredCache:
    policy = replace(policy, evict_batch=EVICT_BATCH, sinks=sinks)
    return ScoredCache(model, policy, capacity, **options)


@torch.no_grad()
def read(model: Any, ids: Tensor, cache: Any, chunk_size: int | None = None) -> Tensor:
    """Logits [1, Q, V], from one call or in chunks."""
    step = chunk_size or ids.shape[1]
    parts = [
        model(ids[:, start : start + step], **cache_argument(model, cache)).logits
        for start in range(0, ids.shape[1], step)
    ]
    return torch.cat(parts, dim=1)


def kept(model: Any, cache: ScoredCache) -> list[list[list[int]]]:
    return [
        [cache.kept_tokens(i, h) for h in (0, 1)] for i in range(model.config.num_hidden_layers)
    ]


def distinct_ids(num_tokens: int, seed: int) -> Tensor:
    """Tokens [1, Q], no two alike: equal ones have equal keys in the first layer, so only rounding
    would say which is evicted."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(VOCAB - 2, generator=generator)[None, :num_tokens] + 2


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def eager() -> Any:
    return tiny_model("llama", _attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["keydiff", "snapkv"])
def test_with_room_for_everything_it_is_transformers_own_cache(family: str, name: str) -> None:
    model = tiny_model(family)
    ids = random_ids(40)
    with torch.no_grad():
        wanted = model(ids).logits
    cache = make(model, POLICIES[name][0], 40)
    found = torch.cat([read(model, ids[:, :25], cache), read(model, ids[:, 25:], cache, 4)], dim=1)
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    assert cache.report().num_evicted == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_protecting_the_newest_is_streaming(family: str) -> None:
    model = tiny_model(family)
    ids = random_ids(70)
    for dense in (False, True):
        window = LaCache(
            model,
            CAPACITY,
            Streaming(sinks=SINKS, evict_batch=EVICT_BATCH),
            prefill="dense" if dense else "chunked",
        )
        scored = make(model, Newest(), dense=dense)
        for part in (ids[:, :40], ids[:, 40:]):
            torch.testing.assert_close(
                read(model, part, scored), read(model, part, window), atol=TOLERANCE, rtol=0
            )
        assert scored.report() == window.report()
        growing = window.growing_layers
        assert [scored.kept_tokens(i, 0) for i in growing] == [
            window.kept_tokens(i) for i in growing
        ]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("dense", [0, 30])
def test_agrees_with_the_slow_twin(
    model: Any, eager: Any, name: str, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lacache.evals.baselines.cache.DENSE_BLOCK", 7)
    policy, score = POLICIES[name]
    ids = distinct_ids(55, seed=3)
    wanted, tokens = slow_read(
        eager,
        ids,
        score,
        [CAPACITY] * 5,
        evict_batch=EVICT_BATCH,
        sinks=SINKS,
        protected=policy.protected,
        dense=dense,
    )
    cache = make(model, policy, dense=dense > 0)
    first, then = ids[:, : dense or 41], ids[:, dense or 41 :]
    found = torch.cat([read(model, first, cache), read(model, then, cache, 4)], dim=1)
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    assert kept(model, cache) == tokens
    assert tokens != [[list(range(SINKS)) + list(range(55 - 11, 55))] * 2] * 5


@pytest.mark.parametrize("name", ["knorm", "snapkv"])
@pytest.mark.parametrize("dense", [0, 30])
def test_capacities_by_layer_agree_with_the_slow_twin(
    model: Any, eager: Any, name: str, dense: int
) -> None:
    policy, score = POLICIES[name]
    capacities = (20, 17, 14, 11, 10)
    ids = distinct_ids(55, seed=4)
    wanted, tokens = slow_read(
        eager,
        ids,
        score,
        capacities,
        evict_batch=EVICT_BATCH,
        sinks=SINKS,
        protected=policy.protected,
        dense=dense,
    )
    cache = make(model, policy, capacities, dense=dense > 0)
    first, then = ids[:, : dense or 41], ids[:, dense or 41 :]
    found = torch.cat([read(model, first, cache), read(model, then, cache, 4)], dim=1)
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    assert kept(model, cache) == tokens


@pytest.mark.parametrize("name", KEY_POLICIES)
@pytest.mark.parametrize("family", ["phi3", "smollm3"])
def test_pieces_do_not_matter_to_scores_of_keys(family: str, name: str) -> None:
    model = tiny_model(family)
    ids = distinct_ids(60, seed=5)
    whole, cut = make(model, POLICIES[name][0]), make(model, POLICIES[name][0])
    torch.testing.assert_close(
        read(model, ids, whole), read(model, ids, cut, 1), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", POLICIES)
def test_generate_and_prefill_read_alike(model: Any, name: str) -> None:
    """Ever growing positions against slots, in the same chunk_size."""
    ids = random_ids(41, seed=6)
    cache = make(model, POLICIES[name][0])
    text = model.generate(ids, **cache_argument(model, cache), max_new_tokens=20, do_sample=False)
    other = make(model, POLICIES[name][0])
    logits = other.prefill(model, ids)
    for token in text[0, 41:].tolist():
        assert token == int(logits.argmax())
        logits = other.prefill(model, torch.tensor([[token]]))


@pytest.mark.parametrize("name", POLICIES)
def test_strict_never_holds_more_than_the_capacity(model: Any, name: str) -> None:
    cache = make(model, POLICIES[name][0])
    per_token = 5 * 2 * 2 * 8 * 4
    most = []

    def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        most.append(max(layer.num_stored() for layer in cache.layers))

    hook = model.get_decoder().layers[2].register_forward_hook(look, with_kwargs=True)
    try:
        for piece in random_ids(80, seed=7).split(23, dim=1):
            read(model, piece, cache)
            report = cache.report()
            assert report.num_cached <= report.capacity == CAPACITY
            assert report.bytes == report.num_cached * per_token
    finally:
        hook.remove()
    assert max(most) == CAPACITY
    assert report.num_seen == 80
    assert report.coverage == len({t for layer in kept(model, cache) for h in layer for t in h})


def test_sinks_and_the_newest_stay(model: Any) -> None:
    cache = make(model, H2O(recent=5), sinks=3)
    read(model, random_ids(60), cache)
    for layer in kept(model, cache):
        for tokens in layer:
            assert tokens[:3] == [0, 1, 2]
            assert tokens[-5:] == list(range(55, 60))


def test_heads_keep_their_own_tokens_but_not_tovas(model: Any) -> None:
    by_name = {}
    for name in ("knorm", "tova"):
        cache = make(model, POLICIES[name][0])
        read(model, random_ids(60), cache)
        by_name[name] = kept(model, cache)
    assert all(first != second for first, second in by_name["knorm"])
    assert all(first == second for first, second in by_name["tova"])


def test_a_dense_prefill_sees_everything_and_is_cut_afterwards(model: Any) -> None:
    ids = random_ids(60)
    with torch.no_grad():
        wanted = model(ids).logits
    for policy, _ in POLICIES.values():
        cache = make(model, policy, dense=True)
        found = read(model, ids, cache)
        torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
        strict = make(model, policy)
        read(model, ids, strict)
        assert cache.report().num_cached == strict.report().num_cached < 15


@pytest.mark.parametrize("name", POLICIES)
def test_a_copy_goes_its_own_way(model: Any, name: str) -> None:
    ids = random_ids(60, seed=8)
    cache = make(model, POLICIES[name][0])
    read(model, ids[:, :40], cache)
    before = kept(model, cache)
    other = copy.deepcopy(cache)
    apart = read(model, ids[:, 40:], other)
    assert kept(model, cache) == before
    torch.testing.assert_close(read(model, ids[:, 40:], cache), apart, atol=0, rtol=0)


@pytest.mark.parametrize("name", POLICIES)
def test_reset_starts_over(model: Any, name: str) -> None:
    ids = random_ids(50, seed=9)
    cache = make(model, POLICIES[name][0])
    first = read(model, ids, cache)
    cache.reset()
    assert cache.report().num_seen == cache.report().bytes == 0
    torch.testing.assert_close(read(model, ids, cache), first, atol=0, rtol=0)


def test_the_implementation_of_attention_comes_back(model: Any) -> None:
    assert model.config._attn_implementation == "sdpa"
    used = []
    decoder = model.get_decoder()
    # Made before anybody listens, since the first one of a model tries a few tokens.
    strict, dense, by_keys = (
        make(model, TOVA()),
        make(model, TOVA(), dense=True),
        make(model, Knorm()),
    )
    hook = decoder.layers[0].register_forward_pre_hook(
        lambda module, args: used.append(decoder.config._attn_implementation)
    )
    try:
        read(model, random_ids(30), strict)
        assert set(used) == {"eager"}
        assert model.config._attn_implementation == "sdpa"
        used.clear()
        read(model, random_ids(30), dense)
        # Only the newest token's attention is looked at.
        assert used == ["sdpa", "eager"]
        used.clear()
        read(model, random_ids(30), by_keys)
        assert set(used) == {"sdpa"}
    finally:
        hook.remove()


def test_after_an_error_the_model_is_as_it_was_and_the_cache_says_so(model: Any) -> None:
    cache = make(model, TOVA())
    layer = model.get_decoder().layers[3]

    def fail(module: Any, args: Any) -> None:
        raise RuntimeError("half-way")

    hook = layer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="half-way"):
            read(model, random_ids(30), cache)
    finally:
        hook.remove()
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(UnsupportedOperationError, match="interrupted"):
        read(model, random_ids(5), cache)
    cache.reset()
    read(model, random_ids(30), cache)


def test_a_model_without_attention_weights_is_refused(model: Any) -> None:
    mute = tiny_model("llama")
    cache = make(mute, TOVA())
    for layer in mute.get_decoder().layers:
        layer.self_attn.register_forward_hook(
            lambda module, args, output: (output[0], None), prepend=True
        )
    with pytest.raises(UnsupportedModelError, match="attention weights for 0 of 5"):
        read(mute, random_ids(5), cache)


def test_a_model_that_does_not_name_its_attention_is_refused() -> None:
    nameless = tiny_model("llama")
    nameless.get_decoder()._can_record_outputs = {}
    with pytest.raises(UnsupportedModelError, match="does not declare which"):
        make(nameless, TOVA())
    make(nameless, Knorm())


@pytest.mark.parametrize("kv_dtype", sorted(KV_DTYPES))
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("dense", [0, 30])
def test_fewer_bits_are_rounded_states(model: Any, name: str, dense: int, kv_dtype: str) -> None:
    """The twin is in the model's type, and all that it is given is encoded and decoded."""
    ids = distinct_ids(55, seed=3)
    codecs = find_codecs(kv_dtype, torch.float32)
    found, twin = (
        make(model, POLICIES[name][0], dense=dense > 0, kv_dtype=each) for each in (kv_dtype, None)
    )
    update: Any = twin.update

    def rounded(keys: Tensor, values: Tensor, *args: Any, **options: Any) -> Any:
        pairs = zip(codecs, (keys, values), strict=True)
        return update(*(c.decode(c.encode(states)) for c, states in pairs), *args, **options)

    twin.update = rounded  # type: ignore[method-assign]
    for part in (ids[:, : dense or 41], ids[:, dense or 41 :]):
        assert torch.equal(read(model, part, found, 30), read(model, part, twin, 30))
    assert kept(model, found) == kept(model, twin)
    per_token = bytes_per_token(model_info(model), kv_dtype)
    assert found.report().bytes == found.report().num_cached * per_token
    assert found.report().bytes < twin.report().bytes


def test_what_cannot_be_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="at least 10 = sinks 2"):
        make(model, H2O(recent=5), 9)
    with pytest.raises(ConfigError, match="4 capacities were given for 5 layers"):
        make(model, TOVA(), (14,) * 4)
    with pytest.raises(ConfigError, match="kv_dtype='int3' must be None"):
        make(model, TOVA(), kv_dtype="int3")
    with pytest.raises(ConfigError, match="kernel=4 must be odd"):
        SnapKV(window=4, kernel=4)
    cache = make(model, Knorm())
    other = tiny_model("llama")
    make(other, Knorm())
    with pytest.raises(InputError, match="2 sequences"):
        read(model, random_ids(5, batch_size=2), cache)
    with pytest.raises(ModelError, match="another model"):
        read(other, random_ids(5), cache)
    with pytest.raises(UnsupportedOperationError, match="outside"):
        cache.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)
    read(model, random_ids(5), cache)
    with pytest.raises(InputError, match="has seen 5 tokens"):
        model(random_ids(3), **cache_argument(model, cache), position_ids=torch.arange(3)[None])
    with pytest.raises(InputError, match="layer_idx=7"):
        cache.kept_tokens(7, 0)
    with pytest.raises(UnsupportedOperationError, match="taking tokens back"):
        cache.crop(3)

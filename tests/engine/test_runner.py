"""The static cache and its runner against the slow twin and against the transformers cache."""

from copy import deepcopy
from functools import cache as memoize
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache import LaCache
from lacache.cache.static.compaction_ops import TorchCompactionOps
from lacache.cache.static.prefill_layers import PrefillRingLayer
from lacache.cache.static.static_cache import StaticKVCache
from lacache.engine.runner import Runner
from lacache.errors import ConfigError, UnsupportedOperationError
from lacache.models.decoder import cache_argument
from lacache.policies import Group, Groups, Ladder, Streaming
from tests.cache.slow_cache import slow_next
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import FAMILIES, VOCAB, random_ids, tiny_model
from tests.engine.ragged import TOLERANCE, Ragged, new_runner, twin_logits
from tests.policies.sized import Sized

LADDER = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
BY_HEAD = (
    None,
    Groups(
        (
            Group(Ladder(span=1, sinks=2, recent=4, evict_batch=4), (1, 4, (3, 0), (0, 1)), 24),
            Group(Streaming(sinks=2, evict_batch=4), ((0, 0), (3, 1)), 9),
            Group(Streaming(sinks=1, evict_batch=4), (2,), 14),
        )
    ),
)
TEXT = random_ids(60)[0]


@memoize
def model(family: str = "llama") -> Any:
    return tiny_model(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Rows of three lengths, one of them idle at times, and their texts alone."""
    ragged = Ragged(new_runner(model(family), LADDER, 3, None), seed=0)
    for length in (16, 5, 1, 13):
        ragged.read(0, length)
        ragged.read(2, 3)
        ragged.step([0, 2])
    for active in ([1], [0, 1], [2], [0, 1, 2]):
        for _ in range(7):
            ragged.step(active)
    ragged.fork(0, 1)
    for _ in range(4):
        ragged.step([0, 1])
    ragged.clear(2)
    ragged.read(2, 16)
    ragged.step([2])
    ragged.check(model(family), LADDER)


@given(sized=sized_policies(5, 2), seed=st.integers(0, 1000))
@settings(max_examples=6)
def test_any_policy_and_any_calls(sized: Sized, seed: int) -> None:
    ragged = Ragged(new_runner(model(), sized, 3, None), seed)
    for _ in range(14):
        ragged.random_call()
    ragged.check(model(), sized)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_greedy_text_is_that_of_the_twins(family: str) -> None:
    prompt, num_new = random_ids(21, seed=1), 25
    runner = new_runner(model(family), LADDER, 3, None)
    text = prompt[0].tolist()
    logits = read(runner, 1, prompt[0])
    for _ in range(num_new):
        text.append(int(logits.argmax()))
        logits = step(runner, 1, text[-1])
    slow = slow_next(model(family), torch.tensor([text[:-1]]), LADDER, 5)
    assert text[21:] == slow[0, 20:].tolist()
    cache = LaCache(model(family), *LADDER)
    generated = model(family).generate(
        prompt, **cache_argument(model(family), cache), max_new_tokens=num_new, do_sample=False
    )
    assert text == generated[0].tolist()


@pytest.mark.parametrize(("family", "sized"), [("llama", BY_HEAD), ("gemma3", LADDER)])
def test_what_is_in_unused_slots_does_not_matter(family: str, sized: Sized) -> None:
    def logits(filling: float) -> Tensor:
        """Of a row beside one that has ended and one that waits; compactions on the way."""
        runner = new_runner(model(family), sized, 3, None)
        read(runner, 1, random_ids(30, seed=7)[0])
        read(runner, 2, random_ids(11, seed=8)[0])
        runner.cache.clear(1)
        found = []
        for start in range(0, 40, 5):
            fill_unused(runner.cache, filling)
            found.append(read(runner, 0, TEXT[start : start + 4]))
            fill_unused(runner.cache, filling)
            found.append(step(runner, 0, int(TEXT[start + 4])))
        assert runner.cache.sequences[0].groups[0].num_compactions > 1
        return torch.stack(found)

    expected = logits(0.0)
    assert torch.equal(logits(1e4), expected)
    assert torch.equal(logits(-3.0), expected)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_other_sequences_and_the_own_batch_slot_do_not_matter(family: str) -> None:
    # Widths are whole vectors of the processor, since torch computes what is left over in another
    # way, which rounds differently.
    tiny = tiny_model(family, intermediate_size=64)

    def logits(row: int, *, alone: bool) -> Tensor:
        runner = new_runner(tiny, LADDER, 3, None)
        others = [] if alone else [other for other in range(3) if other != row]
        for other in others:
            read(runner, other, random_ids(9 + other, seed=other)[0])
        found = [read(runner, row, TEXT[:20])]
        for number, token in enumerate(TEXT[20:60].tolist()):
            tokens = [(5 * number + other) % VOCAB for other in range(3)]
            tokens[row] = token
            found.append(runner.decode(tokens, [row, *others])[row])
        return torch.stack(found)

    expected = logits(0, alone=True)
    assert torch.equal(logits(0, alone=False), expected)
    assert torch.equal(logits(2, alone=True), expected)
    assert torch.equal(logits(2, alone=False), expected)


@pytest.mark.parametrize(
    ("family", "changes", "sized"),
    [
        (
            "llama",
            {"num_hidden_layers": 3},
            (
                None,
                Groups(
                    (
                        Group(Ladder(span=1, sinks=2, evict_batch=2), (0, (1, 1)), 20),
                        Group(Streaming(sinks=2, evict_batch=2), ((1, 0),), 9),
                        Group(Streaming(sinks=1, evict_batch=2), (2,), 14),
                    )
                ),
            ),
        ),
        (
            "gemma3",
            {
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            (16, Ladder(span=1, sinks=2, evict_batch=2)),
        ),
    ],
    ids=["llama", "gemma3"],
)
def test_one_graph_for_ever(family: str, changes: dict[str, Any], sized: Sized) -> None:
    """What follows the first step is compiled neither anew nor in pieces, and equals eager."""
    tiny = tiny_model(family, **changes)
    # Its hooks on the decoder are the private model's too.
    LaCache(tiny, *sized)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled, eager = new_runner(tiny, sized, 3, backend), new_runner(tiny, sized, 3, None)
    assert compiled.compile_seconds is None
    token = 2

    def step(active: list[int]) -> None:
        nonlocal token
        tokens = [token := 2 + (token + 9) % (VOCAB - 2) for _ in range(3)]
        found, expected = compiled.decode(tokens, active), eager.decode(tokens, active)
        assert torch.equal(found[active], expected[active])

    for active in ([1], [0, 1], [2], [0, 1, 2]):
        for _ in range(18):
            step(active)
    for runner in (compiled, eager):
        runner.cache.clear(0)
        runner.cache.fork(1, 0)
        read(runner, 2, TEXT[:20])
    for _ in range(20):
        step([0, 2])
    assert compiled.cache.sequences[2].groups[0].num_compactions > 2
    assert len(graphs) == 1
    assert compiled.compile_seconds is not None


@pytest.mark.parametrize("backend", [None, "eager"])
def test_one_sequence_alone(backend: str | None) -> None:
    """Its products are those of a matrix and a vector, written out where they are compiled."""
    types = ["full_attention"] * 2
    tiny = tiny_model("qwen2", num_hidden_layers=2, layer_types=types)
    for name, bias in tiny.named_parameters():
        if name.endswith("bias"):
            bias.data.normal_()
    sized = (16, Ladder(span=1, sinks=2, evict_batch=2))
    runner = new_runner(tiny, sized, 1, backend)
    found = [read(runner, 0, TEXT[:20])]
    found += [step(runner, 0, token) for token in TEXT[20:].tolist()]
    expected = twin_logits(tiny, TEXT[None], sized)[0, 19:]
    torch.testing.assert_close(torch.stack(found), expected, atol=TOLERANCE, rtol=0)


def test_a_failing_compiler_costs_speed_only() -> None:
    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        raise OSError("no compiler here")

    failing, eager = new_runner(model(), LADDER, 2, backend), new_runner(model(), LADDER, 2, None)
    for runner in (failing, eager):
        read(runner, 0, TEXT[:20])
    with pytest.warns(UserWarning, match="compiling failed .*no compiler here.*uncompiled"):
        assert torch.equal(step(failing, 0, 5), step(eager, 0, 5))
    for token in TEXT[:20].tolist():
        assert torch.equal(step(failing, 0, token), step(eager, 0, token))
    assert failing.compile_seconds is None


def test_a_compiler_that_refuses_at_once_costs_speed_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torch does with options or versions of Python that it does not know."""
    runner, eager = new_runner(model(), LADDER, 2, "inductor"), new_runner(model(), LADDER, 2, None)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unexpected optimization option")

    monkeypatch.setattr(torch, "compile", refuse)
    for each in (runner, eager):
        read(each, 0, TEXT[:20])
    with pytest.warns(UserWarning, match=r"compiling failed .*Unexpected.*uncompiled"):
        assert torch.equal(step(runner, 0, 5), step(eager, 0, 5))


def test_options_of_the_compiler_that_this_torch_does_not_have_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    def compile(function: Any, *, options: dict[str, Any], **_: Any) -> Any:
        given.update(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    known = [name for name in torch._inductor.list_options() if name != "alignment_asserts"]
    monkeypatch.setattr(torch._inductor, "list_options", lambda: known)
    step(new_runner(model(), LADDER, 2, "inductor"), 0, 5)
    assert given["size_asserts"] is False
    assert "alignment_asserts" not in given


def test_an_engine_made_in_inference_mode_runs_outside_of_it() -> None:
    with torch.inference_mode():
        runner = new_runner(model(), LADDER, 1, None)
    twin = new_runner(model(), LADDER, 1, None)
    assert torch.equal(read(runner, 0, TEXT[:30]), read(twin, 0, TEXT[:30]))
    assert torch.equal(step(runner, 0, 5), step(twin, 0, 5))


def test_keys_rotate_as_before_where_the_model_is_cast() -> None:
    """Casting rounds its frequencies; where layers count on, keys turn ever further."""
    tiny = tiny_model("gemma3")
    runner, twin = (
        new_runner(tiny, LADDER, 1, None),
        new_runner(tiny_model("gemma3"), LADDER, 1, None),
    )
    tiny.bfloat16()
    for _ in range(4):
        for one in (runner, twin):
            read(one, 0, TEXT)
    assert torch.equal(step(runner, 0, 5), step(twin, 0, 5))


@pytest.mark.parametrize(("family", "sized"), [("llama", BY_HEAD), ("gemma3", LADDER)])
@pytest.mark.parametrize("depth", [0, 3])
def test_an_interrupted_forward_can_be_made_again(family: str, sized: Sized, depth: int) -> None:
    tiny = tiny_model(family)
    calm = new_runner(tiny, sized, 2, None)
    is_armed = []

    def interrupt(*_: Any) -> None:
        if is_armed:
            raise KeyboardInterrupt

    tiny.model.layers[depth].register_forward_hook(interrupt)
    shaken = new_runner(tiny, sized, 2, None)
    for start in range(0, 50, 5):
        for run in (
            lambda runner, at=start: read(runner, 1, TEXT[at : at + 4]),
            lambda runner, at=start: step(runner, 1, int(TEXT[at + 4])),
        ):
            is_armed.append(True)
            with pytest.raises(KeyboardInterrupt):
                run(shaken)
            is_armed.clear()
            assert torch.equal(run(shaken), run(calm))


def test_another_call_may_follow_an_interrupted_one() -> None:
    tiny = tiny_model("gemma3")
    calm = new_runner(tiny, LADDER, 2, None)
    is_armed = []

    def interrupt(*_: Any) -> None:
        if is_armed:
            raise KeyboardInterrupt

    tiny.lm_head.register_forward_hook(interrupt)
    shaken = new_runner(tiny, LADDER, 2, None)
    for runner in (calm, shaken):
        read(runner, 0, TEXT[:13])
    is_armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        shaken.prefill(0, TEXT[20:23])
    is_armed.clear()
    for token in TEXT[30:40].tolist():
        assert torch.equal(step(shaken, 0, token), step(calm, 0, token))
    assert torch.equal(read(shaken, 1, TEXT[:7]), read(calm, 1, TEXT[:7]))


@pytest.mark.parametrize("positions", ["original", "slots"])
@pytest.mark.parametrize("family", ["phi3-longrope", "llama-dynamic"])
def test_a_capacity_of_all_positions_with_the_same_frequencies(family: str, positions: str) -> None:
    sized = (40, Ladder(span=2, sinks=2, recent=5, evict_batch=3, positions=positions))
    tiny = tiny_model(family)
    ids = random_ids(90)
    runner = new_runner(tiny, sized, 1, None)
    found = torch.stack([step(runner, 0, token) for token in ids[0].tolist()])
    torch.testing.assert_close(found, twin_logits(tiny, ids, sized)[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_sequences_past_the_trained_length_are_renumbered_one_by_one(family: str) -> None:
    tiny = tiny_model(family, max_position_embeddings=40)
    ragged = Ragged(new_runner(tiny, LADDER, 3, None), seed=3)
    is_renumbered = False
    for _ in range(40):
        ragged.random_call()
        is_renumbered |= any(sequence.base for sequence in ragged.runner.cache.sequences)
    ragged.check(tiny, LADDER)
    assert is_renumbered


@pytest.mark.parametrize(
    ("family", "broken"),
    [("llama", (TorchCompactionOps, "move_few")), ("gemma3", (PrefillRingLayer, "commit"))],
)
def test_an_interrupted_change_is_noticed(
    family: str, broken: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = new_runner(model(family), LADDER, 2, None)
    read(runner, 0, TEXT[:16])
    other = read(runner, 1, TEXT[:9])
    whole, calls = getattr(*broken), []

    def interrupt(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(*args)

    monkeypatch.setattr(*broken, interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.prefill(0, TEXT[:1])
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(UnsupportedOperationError, match=r"interrupted half-way.*close it"):
            runner.prefill(0, TEXT[:1])
        with pytest.raises(UnsupportedOperationError, match=r"interrupted half-way.*close it"):
            runner.decode([3, 3], [0, 1])
    runner.cache.clear(0)
    assert torch.equal(read(runner, 0, TEXT[:9]), other)
    assert torch.equal(step(runner, 1, 5), step(runner, 0, 5))


@pytest.mark.parametrize("rows", [1, 2])
def test_the_callers_model_stays_as_it_is(rows: int) -> None:
    tiny = tiny_model("llama", seed=4).train()
    modules = {name: (id(module), type(module)) for name, module in tiny.named_modules()}
    config = deepcopy(tiny.config.to_dict())
    attention = tiny.config._attn_implementation
    tiny.eval()
    expected = tiny(TEXT[None]).logits
    tiny.train()
    runner = new_runner(tiny, LADDER, rows, None)
    read(runner, 0, TEXT[:30])
    step(runner, 0, 3)
    assert {name: (id(m), type(m)) for name, m in tiny.named_modules()} == modules
    assert all(module.training for module in tiny.modules())
    assert tiny.config.to_dict() == config
    assert tiny.config._attn_implementation == attention == "sdpa"
    tiny.eval()
    assert torch.equal(tiny(TEXT[None]).logits, expected)
    theirs = {name: weight.data_ptr() for name, weight in tiny.named_parameters()}
    mine = {name: weight.data_ptr() for name, weight in runner._model.named_parameters()}
    assert mine == theirs


def test_a_model_in_training_is_run_as_it_is_meant() -> None:
    tiny = tiny_model("phi3", resid_pdrop=0.5, attention_dropout=0.5)
    expected = read(new_runner(tiny, LADDER, 1, None), 0, TEXT[:40])
    found = read(new_runner(tiny.train(), LADDER, 1, None), 0, TEXT[:40])
    assert torch.equal(found, expected)
    assert tiny.training


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("positions", ["original", "slots"])
def test_no_drift_in_low_precision(family: str, positions: str) -> None:
    """Hundreds of compactions in bfloat16 leave keys that were rotated once."""
    sized = (10, Streaming(sinks=2, evict_batch=1, positions=positions))
    low = tiny_model(family).bfloat16()
    ids = random_ids(220, seed=2)
    runner = new_runner(low, sized, 1, None)
    found = torch.stack([step(runner, 0, token) for token in ids[0].tolist()])
    with torch.no_grad():
        by_cache = low(ids, **cache_argument(low, LaCache(low, *sized))).logits[0].float()
    (group,) = runner.cache.sequences[0].groups
    assert group.num_compactions == 210

    def error(part: slice) -> float:
        return float((found - by_cache)[part].norm() / by_cache[part].norm())

    # A single rounding to bfloat16 is off by up to 0.4 %, and every layer has some.
    assert error(slice(0, 110)) < 0.03
    assert error(slice(110, None)) < 0.03
    layers = [layer for layer in runner.layout.info.growing if layer.rotation is not None]
    for layer in layers:
        (part,) = runner.cache.kv_heads[layer.index]
        assert part.unrotated_keys is not None
        unrotated, keys = (
            buffer.read(0, part.num_unrotated) for buffer in (part.unrotated_keys, part.keys)
        )
        shifts = group.shifts()[0]
        # Slots, or numbers of tokens where sinks move or other layers count on.
        counts_on = runner.cache.rings or positions == "original"
        assert int(shifts.abs().max()) >= (200 if counts_on else 7)
        moved = slice(0, len(shifts))
        once = layer.rotation.rotate(unrotated[:, :, moved], layer.rotation.tables(shifts[moved]))
        assert torch.equal(keys[:, :, moved], once)


def read(runner: Runner, row: int, tokens: Tensor) -> Tensor:
    """Logits [V] of the last token of any number."""
    while len(tokens):
        room = runner.cache.sequences[row].room()
        logits, tokens = runner.prefill(row, tokens[:room]), tokens[room:]
    return logits


def step(runner: Runner, row: int, token: int) -> Tensor:
    """Logits [V] after one token in one row."""
    tokens = [2] * len(runner.cache.sequences)
    tokens[row] = token
    return runner.decode(tokens, [row])[row]


def fill_unused(cache: StaticKVCache, filling: float) -> None:
    """Fill every slot of every row whose content nothing depends on."""
    for number, row in enumerate(cache.sequences):
        for parts in cache.kv_heads.values():
            for part in parts:
                group = row.groups[part.group]
                for buffer in (part.keys, part.values):
                    buffer.tensors(number)[0][:, group.state.num_cached :] = filling
                if part.unrotated_keys is not None:
                    part.unrotated_keys.tensors(number)[0][:, group.num_saved :] = filling
        for ring in cache.rings.values():
            for buffer in (ring.keys, ring.values):
                buffer.tensors(number)[0][:, row.num_seen :] = filling


def test_autocast_around_the_engine_changes_nothing() -> None:
    runner, twin = new_runner(model(), LADDER, 1, None), new_runner(model(), LADDER, 1, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [read(runner, 0, TEXT[:30]), step(runner, 0, 5)]
    assert all(map(torch.equal, found, [read(twin, 0, TEXT[:30]), step(twin, 0, 5)]))


@pytest.mark.parametrize(("rows", "capacity"), [(10**9, 16), (10**30, 16), (1, 10**15)])
def test_memory_that_is_not_there_is_refused(rows: int, capacity: int) -> None:
    sized = (capacity, Streaming(sinks=2, evict_batch=1))
    with pytest.raises(
        ConfigError, match=rf"max_sequences={rows} of .* bytes.*fewer sequences or a smaller"
    ):
        new_runner(model(), sized, rows, None)

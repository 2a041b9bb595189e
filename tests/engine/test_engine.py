"""Sequences that share an engine: scheduling, memory, and what is refused."""

import gc
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import transformers as tf

from lacache import Engine, Full, Ladder, Sampling, Streaming
from lacache.engine.sampler import Sampler
from lacache.engine.sequence import Sequence
from lacache.errors import (
    ConfigError,
    InputError,
    ModelError,
    UnsupportedModelError,
    UnsupportedOperationError,
)
from tests.cache.tiny_models import SHAPE, random_ids, tiny_model
from tests.engine.alone import PLAN, continued

SINKS = (16, Streaming(evict_batch=4))
SAMPLED = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.5, seed=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    tokens: list[int] = random_ids(num_tokens, seed=seed)[0].tolist()
    return tokens


def make(model: Any, max_sequences: int = 2, chunk_size: int = 5, **options: Any) -> Engine:
    return Engine(model, *PLAN, max_sequences=max_sequences, chunk_size=chunk_size, **options)


def step_until(engine: Engine, done: Callable[[], bool]) -> None:
    while not done():
        assert engine.step()


@pytest.mark.parametrize(("max_sequences", "chunk_size"), [(1, 256), (3, 5), (2, 1)])
def test_sequences_equal_themselves_alone(model: Any, max_sequences: int, chunk_size: int) -> None:
    """Shorter and longer than the capacity, some of which wait for a row."""
    engine = make(model, max_sequences, chunk_size)
    prompts = [prompt(length, seed=length) for length in (1, 3, 24, 25, 60)]
    streams = [engine.submit(p, max_new_tokens=20) for p in prompts]
    assert [list(s) for s in streams] == [continued(model, p, 20) for p in prompts]
    assert engine.num_free == max_sequences


def test_streams_that_are_taken_in_turns(model: Any) -> None:
    engine = make(model)
    prompts = [prompt(9), prompt(40)]
    streams = [engine.submit(p, max_new_tokens=20) for p in prompts]
    pairs = list(zip(*streams, strict=True))
    assert [list(s) for s in zip(*pairs, strict=True)] == [continued(model, p, 20) for p in prompts]


@pytest.mark.parametrize("plan", [SINKS, (64, Ladder(span=2, sinks=2))])
def test_other_policies_and_models(plan: Any) -> None:
    hybrid = tiny_model("gemma3")
    engine = Engine(hybrid, *plan, max_sequences=2, chunk_size=7)
    prompts = [prompt(5), prompt(70)]
    streams = [engine.submit(p, max_new_tokens=16) for p in prompts]
    assert [list(s) for s in streams] == [continued(hybrid, p, 16, plan) for p in prompts]


def test_a_seed_gives_the_same_tokens_in_any_batch(model: Any) -> None:
    text = list(make(model).submit(prompt(9), max_new_tokens=30, sampling=SAMPLED))
    assert text == continued(model, prompt(9), 30, sampling=SAMPLED)
    engine = make(model)
    other = engine.submit(prompt(60), sampling=Sampling(temperature=2.0, seed=3))
    stream = engine.submit(prompt(9), max_new_tokens=30, sampling=SAMPLED)
    mixed = [(next(stream), next(other))[0] for _ in range(30)]
    assert mixed == text
    assert len(set(text)) > 5


def test_a_prompt_is_cut_into_chunks(model: Any) -> None:
    pieces: list[int] = []
    list(make(model).submit(prompt(17), max_new_tokens=0, on_progress=pieces.append))
    assert pieces == [5, 5, 5, 2]
    pieces.clear()
    list(make(model, 1, 50).submit(prompt(60), max_new_tokens=0, on_progress=pieces.append))
    # Across compactions.
    assert pieces == [50, 10]
    pieces.clear()
    engine = Engine(model, budget=300, policy="streaming", max_sequences=2)
    list(engine.submit(prompt(290), max_new_tokens=0, on_progress=pieces.append))
    assert pieces == [256, 34]


def test_sequences_wait_for_a_batch_slot_in_order(model: Any) -> None:
    engine = make(model, max_sequences=1)
    began: list[str] = []
    streams = [
        engine.submit(prompt(3), max_new_tokens=4, on_progress=lambda _, n=name: began.append(n))
        for name in "abc"
    ]
    # The others must come to an end before the last can begin.
    assert list(streams[2]) == continued(model, prompt(3), 4)
    assert began == ["a", "b", "c"]
    assert [s.num_ready for s in streams] == [4, 4, 0]
    assert engine.num_free == 1


def test_a_session_does_not_overtake_a_waiting_sequence(model: Any) -> None:
    engine = make(model, max_sequences=1)
    first, second = (engine.submit(prompt(3), max_new_tokens=2) for _ in range(2))
    list(first)
    with pytest.raises(UnsupportedOperationError, match="all 1 batch slots are in use"):
        engine.open()
    assert engine.num_free == 0
    list(second)
    engine.open()


def test_batch_slots_are_released(model: Any) -> None:
    engine = make(model)
    assert engine.num_free == 2
    stream = engine.submit(prompt(3), max_new_tokens=2)
    assert engine.num_free == 1
    step_until(engine, lambda: stream.num_ready == 2)
    # TokenStream to its end, so nobody else has to wait for its reader.
    assert engine.num_free == 2
    assert len(list(stream)) == 2
    with engine.open() as session:
        assert engine.num_free == 1
        list(session.generate(prompt(3), max_new_tokens=2))
    assert engine.num_free == 2


def test_a_stream_without_references_releases_its_slot(model: Any) -> None:
    engine = make(model, max_sequences=1)
    for _ in engine.submit(prompt(30)):
        break
    next(engine.submit(prompt(30)))
    waiting = engine.submit(prompt(9), max_new_tokens=5)
    gc.collect()
    assert list(waiting) == continued(model, prompt(9), 5)
    assert engine.num_free == 1
    unread = engine.submit(prompt(30))
    engine.step()
    waiting = engine.submit(prompt(9))
    del unread, waiting
    gc.collect()
    assert engine.num_free == 1
    assert not engine.step()


def test_waiting_for_a_slot_that_cannot_be_released_is_refused(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lacache.engine.engine._LOOKAHEAD", 4)
    engine = make(model)
    session = engine.open()
    paused = engine.submit(prompt(3))
    waiting = engine.submit(prompt(9), max_new_tokens=5)
    for _ in range(2):
        with pytest.raises(
            UnsupportedOperationError,
            match=r"waits for a batch slot.*open sessions.*until their tokens are taken; close",
        ):
            next(waiting)
    assert list(islice(paused, 30)) == continued(model, prompt(3), 30)
    session.close()
    assert list(waiting) == continued(model, prompt(9), 5)


def test_a_sequence_pauses_at_its_lookahead(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lacache.engine.engine._LOOKAHEAD", 4)
    engine = make(model)
    stream = engine.submit(prompt(3))
    step_until(engine, lambda: stream.num_ready == 4)
    engine.step()
    assert not engine.step()
    assert stream.num_ready == 4
    taken = [next(stream)]
    assert stream.num_ready == 3
    assert engine.step()
    assert stream.num_ready == 4
    taken += islice(stream, 20)
    assert taken == continued(model, prompt(3), 21)


def test_a_long_prompt_stalls_no_decoding_sequence(model: Any) -> None:
    """Every step writes a token of every text that writes, and reads one segment at most."""
    engine = make(model, max_sequences=4)
    writers = [engine.submit(prompt(3, seed=k)) for k in range(2)]
    step_until(engine, lambda: all(w.num_ready for w in writers))
    pieces: list[int] = []
    reader = engine.submit(prompt(200), on_progress=pieces.append)
    num_steps = 0
    while not reader.num_ready:
        before = [w.num_ready for w in writers]
        pieces.clear()
        engine.step()
        num_steps += 1
        assert [w.num_ready for w in writers] == [n + 1 for n in before]
        assert len(pieces) == 1
        assert pieces[0] <= 5
    assert num_steps >= 200 / 5
    assert reader.num_ready == 1
    engine.step()
    assert reader.num_ready == 2
    for k, writer in enumerate(writers):
        num_new = writer.num_ready
        assert list(islice(writer, num_new)) == continued(model, prompt(3, seed=k), num_new)


def test_long_prompts_are_prefilled_in_turns(model: Any) -> None:
    engine = make(model, max_sequences=3)
    read: list[str] = []
    streams = [
        engine.submit(prompt(num), max_new_tokens=1, on_progress=lambda _, n=name: read.append(n))
        for name, num in [("a", 24), ("b", 12), ("c", 18)]
    ]
    step_until(engine, lambda: all(s.num_ready for s in streams))
    assert "".join(read) == "abcabcabcacac"[: len(read)]
    assert len(read) == 5 + 3 + 4


def test_closing_a_waiting_sequence(model: Any) -> None:
    engine = make(model, max_sequences=1)
    first, second, third = (engine.submit(prompt(k), max_new_tokens=4) for k in (3, 4, 5))
    second.close()
    second.close()
    assert second.finish_reason == "closed"
    assert list(second) == []
    assert list(third) == continued(model, prompt(5), 4)
    assert list(first) == continued(model, prompt(3), 4)
    assert engine.num_free == 1


def test_closing_amid_prefill_or_decoding(model: Any) -> None:
    engine = make(model, max_sequences=1)
    with engine.submit(prompt(50)) as reading:
        engine.step()
    assert (reading.finish_reason, list(reading), engine.num_free) == ("closed", [], 1)
    writing = engine.submit(prompt(50))
    taken = list(islice(writing, 3))
    engine.step()
    writing.close()
    assert (writing.finish_reason, list(writing), engine.num_free) == ("closed", [], 1)
    assert taken == continued(model, prompt(50), 3)
    # The next to have the row finds nothing of them.
    assert list(engine.submit(prompt(9), max_new_tokens=30)) == continued(model, prompt(9), 30)


def test_finish_reasons(model: Any) -> None:
    engine = make(model)
    whole = continued(model, prompt(9), 30)
    end = whole[11]
    stream = engine.submit(prompt(9), eos_token_ids=[end, 63])
    step_until(engine, lambda: engine.num_free == 2)
    assert stream.finish_reason is None
    assert list(stream) == whole[: whole.index(end) + 1]
    assert stream.finish_reason == "eos"
    assert next(stream, None) is None
    stream = engine.submit(prompt(9), max_new_tokens=3)
    assert (list(stream), stream.finish_reason) == (whole[:3], "length")
    # A token that is both is an end.
    stream = engine.submit(prompt(9), max_new_tokens=1, eos_token_ids={whole[0]})
    assert (list(stream), stream.finish_reason) == (whole[:1], "eos")
    # What was written but not taken is not what the length cut off.
    stream = engine.submit(prompt(9), max_new_tokens=3)
    step_until(engine, lambda: engine.num_free == 2)
    stream.close()
    assert (list(stream), stream.finish_reason) == ([], "closed")
    stream = engine.submit(prompt(9), max_new_tokens=3)
    list(stream)
    stream.close()
    assert stream.finish_reason == "length"


def test_the_number_of_free_slots_is_only_counted(model: Any) -> None:
    """Reading it must not load snapshots; a stream that nobody holds counts as closed."""
    engine = make(model, max_sequences=3)
    streams = [engine.submit(prompt(9)) for _ in range(2)]
    step_until(engine, lambda: all(stream.num_ready for stream in streams))
    loaded: list[None] = []
    waiting = Sequence(sampler=Sampler(), find_snapshot=lambda: loaded.append(None))
    engine.scheduler.add(waiting)
    assert (engine.num_free, loaded, waiting.batch_slot) == (0, [], None)
    streams.pop()
    gc.collect()
    assert (engine.num_free, engine.scheduler.num_running) == (1, 2)
    engine.scheduler.add(Sequence(sampler=Sampler()))
    engine.scheduler.add(Sequence(sampler=Sampler()))
    assert engine.num_free == 0


def test_no_new_tokens_only_prefills(model: Any) -> None:
    pieces: list[int] = []
    engine = make(model)
    stream = engine.submit(prompt(12), max_new_tokens=0, on_progress=pieces.append)
    assert (list(stream), stream.finish_reason) == ([], "length")
    assert sum(pieces) == 12
    assert engine.num_free == 2


def test_memory_is_known_and_never_grows() -> None:
    """Through thousands of tokens, in the same buffers."""
    engine = Engine(tiny_model("llama", num_hidden_layers=2), *SINKS, max_sequences=2)

    def buffers() -> list[tuple[int, int]]:
        tensors = [t for each in engine._runner.cache.storages() for t in each.flat]
        return [(t.data_ptr(), t.untyped_storage().nbytes()) for t in tensors]

    before = buffers()
    assert engine.num_bytes == 2 * engine.bytes_per_sequence == sum(size for _, size in before)
    # Keys and values [L, rows, Hkv, C, D] in float32, and the keys of the sinks twice.
    slots = 2 * SINKS[0] + SINKS[1].sinks
    assert engine.num_bytes == 2 * 2 * 2 * slots * 8 * 4
    streams = [engine.submit(prompt(9, seed=k)) for k in range(2)]
    assert len(list(islice(streams[0], 1000))) == 1000
    assert streams[1].num_ready == 999
    streams[1].close()
    assert len(list(engine.submit(prompt(1000), max_new_tokens=1))) == 1
    assert buffers() == before
    assert engine.num_bytes == 2 * engine.bytes_per_sequence


@pytest.mark.parametrize("budget", ["20KB", "64KiB", "0.1MB", "1MiB"])
@pytest.mark.parametrize("policy", ["balanced", "recall", "paper"])
def test_a_budget_in_bytes_is_that_of_a_sequence(model: Any, budget: str, policy: str) -> None:
    limit = {"20KB": 20_000, "64KiB": 65_536, "0.1MB": 100_000, "1MiB": 1_048_576}[budget]
    engine = Engine(model, budget, policy, max_sequences=2)
    per_token = engine.bytes_per_sequence / (engine.policy.capacity if policy == "paper" else 1)
    assert limit / 2 < engine.bytes_per_sequence <= limit
    assert policy != "paper" or engine.bytes_per_sequence > limit - per_token
    assert engine.num_bytes == 2 * engine.bytes_per_sequence


def test_a_budget_in_bytes_is_for_growing_layers() -> None:
    """Windows of the model itself come on top."""
    hybrid = tiny_model("gemma3")
    engine = Engine(hybrid, "20KB", "streaming")
    windows = 3 * 2 * 8 * (8 + 8) * 4
    assert 19_000 < engine.bytes_per_sequence - windows <= 20_000


@pytest.mark.parametrize(("kv_dtype", "per_key"), [(None, 4 * 8), ("int8", 8 + 2), ("int4", 4 + 2)])
@pytest.mark.parametrize("positions", ["original", "slots"])
def test_a_budget_in_bytes_heeds_what_states_are_stored_in(
    model: Any, kv_dtype: str | None, per_key: int, positions: str
) -> None:
    """Keys and values of 8 numbers each in 5 layers of 2 heads; in fewer bits with a scale each."""
    engine = Engine(model, "64KB", f"streaming:positions={positions}", kv_dtype=kv_dtype)
    capacity = engine.policy.capacity
    keys_twice = capacity if positions == "slots" else 4
    assert engine.bytes_per_sequence == (2 * capacity + keys_twice) * 5 * 2 * per_key
    assert 64_000 - max(600, 3 * 5 * 2 * per_key) < engine.bytes_per_sequence <= 64_000


def test_a_model_that_looks_at_its_keys_is_refused() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    model = tf.FalconForCausalLM(tf.FalconConfig(**shape, alibi=False)).eval()
    engine = Engine(model, budget=16)
    with pytest.raises(UnsupportedModelError, match=r"shape of its keys.*use LaCache\("):
        list(engine.submit([1, 2, 3], max_new_tokens=2))


@pytest.mark.parametrize("options", [{"budget": 0.25}, {"budget": "0.5"}])
def test_a_share_is_refused(model: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"budget=0\.\d+ is a share.*512 \(tokens\) or '64MiB'"):
        Engine(model, **options)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_sequences": 0}, r"max_sequences=0 must be at least 1; try max_sequences=1"),
    ({"max_sequences": 2.0}, r"max_sequences=2\.0 must be an integer"),
    ({"max_sequences": True}, r"max_sequences=True must be an integer"),
    ({"kv_dtype": "int2"}, r"kv_dtype='int2' must be None.*; try 'int8'"),
    ({"weights": "int4"}, r"weights='int4' must be None.*; try 'int8'"),
    ({"chunk_size": 0}, r"chunk_size=0 must be at least 1; try chunk_size=1"),
    ({"chunk_size": -5}, r"chunk_size=-5 must be at least 1"),
    ({"budget": None, "policy": Full()}, r"keeps every token.*memory is fixed.*use LaCache"),
    ({"budget": None, "policy": "full"}, r"keeps every token"),
    ({"budget": None}, r"no budget was given; try budget=512"),
    ({"policy": "full"}, r"budget=24 cannot be given with policy 'full'"),
    ({"budget": "100B"}, r"100 bytes holds 0 tokens"),
    ({"budget": 4, "policy": Ladder(span=2)}, r"budget=4 must be at least 7"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_bad_options(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(model, **({"budget": PLAN[0], "policy": PLAN[1]} | options))


def test_unsupported_models() -> None:
    linear = tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(
            **SHAPE | {"num_hidden_layers": 4},
            head_dim=8,
            linear_num_value_heads=2,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        )
    ).eval()
    # Older versions of transformers lose the state of such layers, and are refused for that.
    message = r"layer 0 is linear attention.*use LaCache|try a newer transformers"
    with pytest.raises(UnsupportedModelError, match=message):
        Engine(linear, 64, "streaming")


TOKENS: list[tuple[Any, str]] = [
    ([], r"the prompt is empty and at least 1 token is needed; give some text"),
    (torch.zeros(0), r"the prompt is empty"),
    ("hello", r"tokens='hello' must be a list or a tensor of whole numbers; try tokenizer\(text"),
    (None, r"tokens=None must be a list"),
    ([3, None], r"tokens=\[3, None\] must be"),
    ([2**70], r"tokens=\[1180591620717411303424\] must be"),
    ([[3], [4, 5]], r"tokens=\[\[3\], \[4, 5\]\] must be"),
    ({"input_ids": [3]}, r"tokens=\{'input_ids': \[3\]\} must be"),
    ([1.5], r"tokens of type torch\.float32 must be a list or a tensor of whole numbers"),
    ([True, False], r"tokens of type torch\.bool must be"),
    (torch.tensor([1j]), r"tokens of type torch\.complex64 must be"),
    (torch.zeros(1, 3, dtype=torch.long), r"shape \(1, 3\) must be of shape \[tokens\]; give one"),
    (5, r"shape \(\) must be of shape \[tokens\].*in a flat list"),
    ([3, 64], r"token ids from 3 to 64 must lie in 0 to 63; use the tokenizer of this model"),
    ([-1], r"token ids from -1 to -1 must lie in 0 to 63"),
]


@pytest.mark.parametrize(("tokens", "message"), TOKENS)
def test_bad_tokens(model: Any, tokens: Any, message: str) -> None:
    engine = make(model)
    with pytest.raises(InputError, match=message):
        engine.submit(tokens)
    assert engine.num_free == 2
    assert not engine.step()


@pytest.mark.parametrize("tokens", [torch.tensor([3, 4], dtype=torch.uint8), (3, 4), range(3, 5)])
def test_tokens_of_other_types(model: Any, tokens: Any) -> None:
    stream = make(model).submit(tokens, max_new_tokens=3)
    assert list(stream) == continued(model, [3, 4], 3)


def test_a_prompt_is_what_it_was_when_it_was_given(model: Any) -> None:
    tokens = torch.tensor(prompt(9))
    stream = make(model).submit(tokens, max_new_tokens=3)
    tokens.zero_()
    assert list(stream) == continued(model, prompt(9), 3)


@pytest.mark.parametrize("sampling", ["x", 0, {}, Sampling])
def test_other_ways_to_choose_are_refused(model: Any, sampling: Any) -> None:
    engine = make(model)
    for ask in (lambda: engine.submit([3], sampling=sampling), lambda: engine.open(sampling)):
        with pytest.raises(ConfigError, match=r"sampling=.* must be a Sampling; try Sampling\("):
            ask()
    assert engine.num_free == len(engine._runner.cache.sequences)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_tokens": -1}, ConfigError, r"max_new_tokens=-1 must be at least 0"),
        ({"max_new_tokens": 2.5}, ConfigError, r"max_new_tokens=2\.5 must be an integer"),
        ({"eos_token_ids": 5}, InputError, r"eos_token_ids=5 must be token ids in a list or a set"),
        ({"eos_token_ids": "</s>"}, InputError, r"eos_token_ids='</s>'.*eos_token_id\]"),
        ({"eos_token_ids": [None]}, InputError, r"eos_token_ids=\[None\]"),
    ],
)
def test_bad_requests(model: Any, options: dict[str, Any], error: Any, message: str) -> None:
    engine = make(model)
    for ask in (engine.submit, engine.open().generate):
        with pytest.raises(error, match=message):
            ask([3], **options)
    assert not engine.step()


def test_end_tokens_of_other_types(model: Any) -> None:
    whole = continued(model, prompt(9), 5)
    cut = whole[: whole.index(whole[3]) + 1]
    for ends in (torch.tensor([whole[3]]), {whole[3]: "end"}, (whole[3],)):
        assert list(make(model).submit(prompt(9), eos_token_ids=ends)) == cut  # type: ignore[arg-type]


class Trip:
    """Raises once, when it is called for the n-th time."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self._left = number
        self._error = error

    def __call__(self, *args: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error("tripped")


def after(trip: Trip, method: Callable[..., Any]) -> Callable[..., Any]:
    def tripping(*args: Any) -> Any:
        trip()
        return method(*args)

    return tripping


def stubborn(stream: Iterator[int], trips: list[type[BaseException]]) -> Iterator[int]:
    """Tokens of a stream, asked for again after each error."""
    while True:
        try:
            yield next(stream)
        except StopIteration:
            return
        except (RuntimeError, KeyboardInterrupt) as error:
            trips.append(type(error))


def three_prompts(engine: Engine, trips: list[type[BaseException]]) -> list[list[int]]:
    """A session of two turns beside two prompts, one of them sampled, all in turns."""
    session = engine.open(SAMPLED)
    streams = [
        stubborn(engine.submit(prompt(33), max_new_tokens=6), trips),
        stubborn(session.generate(prompt(9), max_new_tokens=7), trips),
        stubborn(engine.submit(prompt(3), max_new_tokens=9, sampling=SAMPLED), trips),
    ]
    texts: list[list[int]] = [[], [], []]
    for _ in range(10):
        for text, stream in zip(texts, streams, strict=True):
            text += islice(stream, 1)
    texts.append(list(stubborn(session.generate(prompt(4), max_new_tokens=5), trips)))
    assert [len(text) for text in texts] == [6, 7, 9, 5]
    return texts


@pytest.mark.parametrize("where", ["forward", "choice"])
def test_after_an_error_every_text_goes_on(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma3")
    expected = three_prompts(make(model, 3), [])
    assert expected[0] == continued(model, prompt(33), 6)
    assert expected[2] == continued(model, prompt(3), 9, sampling=SAMPLED)
    for number in range(1, 26, 3):
        error = (RuntimeError, KeyboardInterrupt)[number % 2]
        trip, trips = Trip(number, error), []
        with monkeypatch.context() as patch:
            if where == "choice":
                patch.setattr(Sampler, "choose", after(trip, Sampler.choose))
                engine = make(model, 3)
            else:
                # The engine's own model takes the hook over.
                hook = model.model.layers[3].register_forward_pre_hook(trip)
                # Chunks without a compaction within can be made again.
                engine = make(model, 3, chunk_size=1)
                hook.remove()
            assert three_prompts(engine, trips) == expected
        assert trips == [error]


@pytest.mark.parametrize("length", [3, 60])
def test_an_interrupted_compaction_stops_no_other_sequence(
    model: Any, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Amid a compaction, while it was written or read."""
    engine = make(model)
    stream = engine.submit(prompt(length))
    cache = engine._runner.cache
    with monkeypatch.context() as patch:
        patch.setattr(cache, "apply", Trip(1, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(stream)
    other = engine.submit(prompt(9), max_new_tokens=20)
    assert list(other) == continued(model, prompt(9), 20)
    list(islice(stream, stream.num_ready))
    for _ in range(2):
        with pytest.raises(UnsupportedOperationError, match=r"interrupted half-way.*close it"):
            next(stream)
    stream.close()
    assert engine.num_free == 2


def test_a_chunk_that_is_interrupted_amid_its_compactions_stops_no_other_sequence(
    model: Any,
) -> None:
    trips: list[Trip] = []

    def interrupt(*_: Any) -> None:
        for trip in trips:
            trip()

    tiny = tiny_model("llama")
    tiny.model.layers[3].register_forward_pre_hook(interrupt)
    engine = make(tiny, chunk_size=40)
    with engine.open() as session:
        text = prompt(40) + list(session.generate(prompt(40), max_new_tokens=6))
        snapshot = session.snapshot()
        stream = session.generate(prompt(30), max_new_tokens=4)
        trips.append(Trip(1, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        other = engine.submit(prompt(60), max_new_tokens=20)
        assert list(other) == continued(model, prompt(60), 20)
        refusal = r"interrupted half-way.*restore a snapshot again"
        with pytest.raises(UnsupportedOperationError, match=refusal):
            next(stream)
        stream.close()
        for refused in (session.snapshot, lambda: list(session.generate(prompt(3)))):
            with pytest.raises(UnsupportedOperationError, match=refusal):
                refused()
    with engine.resume(snapshot) as session:
        found = list(session.generate(prompt(30), max_new_tokens=4))
        assert found == continued(model, text + prompt(30), 4)


@pytest.mark.parametrize("number", [1, 3, 7])
def test_after_an_error_in_on_progress_the_sequence_continues(model: Any, number: int) -> None:
    trips: list[type[BaseException]] = []
    engine = make(model)
    other = engine.submit(prompt(3), max_new_tokens=10)
    stream = engine.submit(
        prompt(33), max_new_tokens=6, on_progress=Trip(number, KeyboardInterrupt)
    )
    assert list(stubborn(stream, trips)) == continued(model, prompt(33), 6)
    assert trips == [KeyboardInterrupt]
    assert list(other) == continued(model, prompt(3), 10)


def test_a_sequence_may_be_closed_in_its_on_progress(model: Any) -> None:
    engine = make(model)
    pieces: list[int] = []

    def stop(num_read: int) -> None:
        pieces.append(num_read)
        if len(pieces) == 2:
            stream.close()

    stream = engine.submit(prompt(33), on_progress=stop)
    assert list(stream) == []
    assert pieces == [5, 5]
    assert engine.num_free == 2


def test_logits_that_are_no_numbers_fail_their_own_stream_alone() -> None:
    broken = tiny_model("llama")
    broken.get_input_embeddings().weight.data[7] = float("nan")
    engine = make(broken)
    bad = engine.submit([7] * 20, sampling=Sampling(temperature=1.0))
    good = engine.submit(prompt(3), max_new_tokens=9)
    text = list(good)
    assert len(text) == 9
    for _ in range(2):
        with pytest.raises(ModelError, match=r"not all numbers.*try dtype=float32"):
            next(bad)
    bad.close()
    # Nothing of it is left in its row: not even what hidden slots held.
    again = [list(engine.submit(prompt(3), max_new_tokens=9)) for _ in range(2)]
    assert again == [text, text]
    assert text == continued(broken, prompt(3), 9)


def test_the_model_stays_as_it_is(model: Any) -> None:
    before = continued(model, prompt(9), 5)
    attention = model.config._attn_implementation
    engine = make(model)
    list(engine.submit(prompt(9), max_new_tokens=5))
    assert model.config._attn_implementation == attention
    assert continued(model, prompt(9), 5) == before
    output = model.generate(torch.tensor([prompt(9)]), max_new_tokens=5, do_sample=False)
    assert output[0, 9:].tolist() == before


def test_repr(model: Any) -> None:
    engine = make(model, max_sequences=3)
    with engine.open():
        text = repr(engine)
    assert text == f"Engine({PLAN[1]} at 24, 1 of 3 batch slots in use, {engine.num_bytes:,} bytes)"
    assert (engine.policy.capacity, engine.policy.policy) == PLAN
    assert engine.compile_seconds is None

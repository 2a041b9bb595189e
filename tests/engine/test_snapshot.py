"""Sessions that go on from a file as if they had never stopped, and files that are refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache as memoize
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from lacache.cache.static.sequence_tensors import export_sequence, restore_sequence
from lacache.engine.engine import Engine
from lacache.engine.runner import Runner
from lacache.engine.sampler import Sampler
from lacache.engine.sampling import Sampling
from lacache.engine.session import Session
from lacache.engine.snapshot import Snapshot, take_snapshot, validate_snapshot
from lacache.engine.snapshot_file import read_header, read_snapshot, write_snapshot
from lacache.errors import InputError, LaCacheError, UnsupportedOperationError
from lacache.policies import Group, Groups, Ladder, Streaming
from lacache.policies.kept import kept_after
from tests.cache.static.policy_strategies import sized_policies
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.ragged import new_runner
from tests.policies.sized import Sized

LADDER = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
BY_HEAD = (
    None,
    Groups(
        (
            Group(Ladder(span=1, sinks=2, recent=4, evict_batch=4), (1, (3, 0), (0, 1)), 24),
            Group(Streaming(sinks=2, evict_batch=4), ((0, 0), (3, 1)), 9),
            Group(Streaming(sinks=1, evict_batch=4), (2, 4), 14),
        )
    ),
)
CASES = {
    "llama": ("llama", LADDER),
    "heads apart": ("llama", BY_HEAD),
    "windows of its own": ("gemma3", LADDER),
    "layers without positions": ("smollm3", LADDER),
}
RANDOM = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.1, seed=5)

cases = pytest.mark.parametrize("case", CASES)


@memoize
def model(family: str = "llama", dtype: torch.dtype = torch.float32, *, anew: bool = False) -> Any:
    """With `anew` another one, with the same weights."""
    return tiny_model(family).to(dtype)


def engine_of(case: str = "llama", *, anew: bool = False, rows: int = 2) -> Engine:
    family, sized = CASES[case]
    return Engine(model(family, anew=anew), *sized, max_sequences=rows)


def opened(engine: Engine, num_tokens: int = 37, *, sampling: Sampling | None = None) -> Session:
    """A session that has read some tokens, and written some."""
    session = engine.open(sampling)
    if num_tokens:
        list(session.generate(random_ids(num_tokens)[0], max_new_tokens=7))
    return session


def goes_on(session: Session, num_tokens: int = 25) -> list[int]:
    return list(session.generate([], max_new_tokens=num_tokens))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "text.lacache"


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """In every bit."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and torch.equal(a[name].contiguous().view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )


class Driven:
    """A row of a runner with random tokens, of which the same seed gives the same."""

    def __init__(self, runner: Runner, row: int, seed: int) -> None:
        self.runner = runner
        self.row = row
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=self.generator))

    def forward(self) -> Tensor:
        """A segment or a step."""
        if self.draw(3) == 1:
            num_new = min(self.draw(20), self.runner.cache.sequences[self.row].room())
            tokens = [self.draw(63) for _ in range(num_new)]
            return self.runner.prefill(self.row, torch.tensor(tokens))
        tokens = [self.draw(63)] * len(self.runner.cache.sequences)
        return self.runner.decode(tokens, [self.row])[self.row].clone()


@given(
    family=st.sampled_from(["llama", "smollm3", "gemma3"]),
    sized=sized_policies(5, 2) | st.just(BY_HEAD),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kv_dtype=st.sampled_from([None, None, "int8", "int4"]),
    cut=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
@settings(max_examples=8)
def test_any_sequence_resumes_bit_for_bit(
    family: str, sized: Sized, dtype: torch.dtype, kv_dtype: str | None, cut: int, seed: int
) -> None:
    """Cut anywhere, and put into another batch slot of another cache, where something else was."""
    sized = LADDER if family == "gemma3" else sized  # the others are for five layers
    runners = [
        new_runner(model(family, dtype, anew=anew), sized, 2, None, kv_dtype)
        for anew in (False, True)
    ]
    whole, other = Driven(runners[0], 0, seed), Driven(runners[1], 1, seed + 1)
    for _ in range(cut):
        whole.forward()
    for _ in range(8):
        other.forward()
    runners[1].cache.clear(1)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "text"
        take_snapshot(whole.runner, 0, Sampler(), last=None, logits=None).save(path)
        snapshot = Snapshot.load(path)
    validate_snapshot(snapshot, other.runner)
    assert same(snapshot.tensors, export_sequence(whole.runner.cache, 0))
    restore_sequence(other.runner.cache, 1, snapshot.tensors)
    assert same(export_sequence(other.runner.cache, 1), snapshot.tensors)
    other.generator.set_state(whole.generator.get_state())
    for _ in range(15):
        assert torch.equal(whole.forward(), other.forward())
    assert same(export_sequence(whole.runner.cache, 0), export_sequence(other.runner.cache, 1))


@cases
@pytest.mark.parametrize("sampling", [RANDOM, Sampling(temperature=0.9)])
def test_a_session_goes_on_as_if_it_had_never_stopped(
    case: str, sampling: Sampling, path: Path
) -> None:
    """Random choices too, with a seed or with none."""
    session = opened(engine_of(case), sampling=sampling)
    session.save(path)
    loaded = engine_of(case, anew=True).load(path)
    assert loaded.num_seen == session.num_seen
    assert loaded.report() == session.report()
    assert goes_on(loaded) == goes_on(session)
    ids = random_ids(30, seed=1)[0]
    assert list(loaded.generate(ids, max_new_tokens=20)) == list(
        session.generate(ids, max_new_tokens=20)
    )


def test_saving_changes_nothing(path: Path) -> None:
    texts = []
    for saves in (False, True):
        session = opened(engine_of(), sampling=RANDOM)
        text = []
        for _ in range(15):
            text += goes_on(session, 1)
            if saves:
                session.save(path)
        texts.append(text)
    assert texts[0] == texts[1]


@cases
def test_what_was_loaded_is_saved_as_it_was(case: str, path: Path, tmp_path: Path) -> None:
    opened(engine_of(case), sampling=RANDOM).save(path)
    again = tmp_path / "again"
    engine_of(case, anew=True).load(path).save(again)
    assert same(read_snapshot(path)[1], read_snapshot(again)[1])
    assert read_header(path) | {"checksum": ""} == read_header(again) | {"checksum": ""}


def test_a_model_that_is_loaded_from_disk(path: Path, tmp_path: Path) -> None:
    session = opened(engine_of("windows of its own"))
    session.save(path)
    model("gemma3").save_pretrained(tmp_path / "model")
    anew = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    engine = Engine(anew, policy=read_header(path)["policy"], max_sequences=2)
    assert goes_on(engine.load(path)) == goes_on(session)


def test_a_session_that_has_seen_nothing(path: Path) -> None:
    engine = engine_of()
    engine.open(RANDOM).save(path)
    loaded = engine_of().load(path)
    assert loaded.num_seen == 0
    with pytest.raises(InputError, match="no token to go on from"):
        loaded.generate([])
    ids = random_ids(20)[0]
    texts = [list(s.generate(ids, max_new_tokens=20)) for s in (loaded, engine.open(RANDOM))]
    assert texts[0] == texts[1]


def test_the_newest_token_is_dropped_or_read(path: Path) -> None:
    session = opened(engine_of())
    texts = []
    for _ in range(2):
        session.save(path)
        loaded = engine_of().load(path)
        assert loaded._sequence.last == session._sequence.last
        texts.append(list(loaded.generate([5, 6], max_new_tokens=20)))
        session.drop_last()
    assert read_header(path)["last"] is None
    assert texts[1] == list(session.generate([5, 6], max_new_tokens=20))


def test_loads_and_forks_are_independent(path: Path) -> None:
    engine = engine_of(rows=4)
    first = opened(engine, sampling=RANDOM)
    fork = first.fork()
    first.save(path)
    loads = [engine.load(path) for _ in range(2)]
    streams = [s.generate([], max_new_tokens=25) for s in (loads[0], first, fork)]
    texts = [list(tokens) for tokens in zip(*streams, strict=True)]
    assert all(len(set(tokens)) == 1 for tokens in texts)
    first.close()
    other = engine.open()
    list(other.generate(random_ids(30, seed=3)[0], max_new_tokens=20))
    assert goes_on(loads[1]) == [tokens[0] for tokens in texts]


def test_size_does_not_depend_on_length(path: Path, tmp_path: Path) -> None:
    policy = Streaming(evict_batch=128)
    schedule = policy.schedule(5, 256)
    held = kept_after(schedule, 300).state.num_cached
    long = next(
        n for n in range(30_000, 31_000) if kept_after(schedule, n).state.num_cached == held
    )
    sizes = []
    for num_tokens in (300, long):
        engine = Engine(model(), 256, policy, max_sequences=1)
        session = engine.open()
        # Every token of the vocabulary, as the sampler holds those that there were.
        ids = torch.cat([torch.arange(64), random_ids(num_tokens - 64)[0]])
        list(session.generate(ids, max_new_tokens=0))
        session.save(path)
        assert read_header(path)["num_seen"] == session.num_seen == num_tokens
        sizes.append(path.stat().st_size)
    # Nor on how many digits its length has; this one cannot be read in the time of a test.
    group = engine._runner.cache.sequences[0].groups[0]
    group.state = group.state._replace(num_seen=10**18)
    session.save(path)
    sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0] < engine.bytes_per_sequence + 10_000


def test_no_more_is_in_it_than_is_held(path: Path) -> None:
    """What an earlier session left in the row is nobody's business."""
    engine = engine_of("windows of its own", rows=1)
    opened(engine, 200).close()
    session = engine.open()
    list(session.generate([7, 8, 9], max_new_tokens=0))
    session.save(path)
    for name, tensor in read_snapshot(path)[1].items():
        if name.startswith("layer."):
            # The sinks' keys are apart from the others, but for windows of the model's own.
            parts = {} if ".ring." in name else {"unrotated_keys": 2, "keys": 1}
            assert tensor.shape[1] == parts.get(name.split(".")[-2], 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "text.lacache"
    opened(engine_of(), sampling=RANDOM).save(path)
    return path


def refused(engine: Engine, path: Path, message: str, error: type[LaCacheError]) -> None:
    """And nothing is left behind: the engine can do what it could before."""
    free = engine.num_free
    before = [state.num_seen for state in engine._runner.cache.sequences]
    with pytest.raises(error, match=message):
        engine.load(path)
    assert engine.num_free == free
    assert [state.num_seen for state in engine._runner.cache.sequences] == before


def scaled() -> Any:
    config = model().config.to_dict()
    rope = config["rope_parameters"] | {"rope_type": "linear", "factor": 4.0}
    return tiny_model("llama", rope_parameters=rope)


def in_int8() -> Engine:
    """Says that it is, so that no extra is needed."""
    engine = Engine(model(), *LADDER, max_sequences=2)
    engine._runner.weights = "int8"
    return engine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Engine(tiny_model("llama", seed=1), *LADDER),
            'saved with model="[0-9a-f-]+", and .* has model="[0-9a-f-]+"; load the model with',
        ),
        (
            lambda: Engine(model("smollm3"), *LADDER),
            'saved with model="[0-9a-f-]+", and .* has model="[0-9a-f-]+"; load the model with',
        ),
        (
            lambda: Engine(scaled(), *LADDER),
            r"saved with positions=.*, and this engine has positions=.*; load the model with the c",
        ),
        (
            lambda: Engine(model(), 16, Streaming(evict_batch=1)),
            r"saved with policy=.*span=2.*, and .* policy=.*streaming.*; make the engine with ",
        ),
        (
            lambda: Engine(model(dtype=torch.bfloat16), *LADDER),
            'saved with dtype="float32", and .* has dtype="bfloat16"; load the model in',
        ),
        (
            lambda: Engine(model(), *LADDER, max_sequences=2, kv_dtype="int8"),
            'saved with kv_dtype=null, and .* has kv_dtype="int8"; make the engine with the',
        ),
        (
            in_int8,
            'saved with weights=null, and .* has weights="int8"; make the engine with the',
        ),
    ],
    ids=["model", "family", "positions", "policy", "dtype", "kv_dtype", "weights"],
)
def test_snapshots_of_something_else_are_refused(
    saved: Path, make: Callable[[], Engine], message: str
) -> None:
    refused(make(), saved, f"^{re.escape(str(saved))} was {message}", InputError)


def test_fewer_bits_of_another_format_are_refused(path: Path) -> None:
    """As lacache 0.1 stored them, under the same name."""
    engine = Engine(model(), *LADDER, max_sequences=2, kv_dtype="int8")
    snapshot = opened(engine).snapshot()
    made_by = {name: entry for name, entry in snapshot.made_by.items() if name != "kv_format"}
    replace(snapshot, made_by=made_by).save(path)
    message = "saved with kv_format=null, .* kv_format=.*hadamard.*; load .* or prefill its text"
    refused(engine, path, message, InputError)


def test_damaged_and_foreign_files_are_refused(saved: Path, path: Path) -> None:
    engine = engine_of()
    opened(engine)
    whole = saved.read_bytes()
    refused(engine, path, "cannot read .*; give a snapshot", InputError)
    for data, message in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged"),
        (whole[:-1], "is cut off"),
        (b"text", "is not a safetensors file"),
    ):
        path.write_bytes(data)
        refused(engine, path, message, InputError)
    path.write_bytes(whole)
    assert goes_on(engine.load(path)) == goes_on(engine_of().load(saved))


def changed(saved: Path, path: Path, header: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """A whole file in which something was replaced, or taken out (None)."""
    old_header, old_tensors = read_snapshot(saved)
    tensors = old_tensors | tensors
    write_snapshot(path, old_header | header, {k: v for k, v in tensors.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({}, {"layer.4.heads.0.values.0": None}, "has no layer.4.heads.0.values.0; export it"),
        ({}, {"group.0.counts": None}, "has no group.0.counts; export it"),
        ({}, {"layer.5.heads.0.values.0": torch.ones(1)}, "has layer.5.heads.0.values.0, which"),
        ({}, {"layer.0.heads.0.values.0": torch.ones(2, 3, 8)}, r"values.0 .* \(2, 3, 8\), and "),
        ({}, {"group.0.counts": torch.tensor([43, 99, 2, 0, 1])}, "holds 15 and not 99 tokens"),
        (
            {},
            {"group.0.counts": torch.tensor([42, 16, 0, 0, 1])},
            "after 43 tokens a cache holds",
        ),
        ({}, {"base": torch.tensor([44])}, "positions count from token 44 of 43; save another"),
        ({}, {"base": torch.ones(1)}, r"base .*float32 \(1,\), and torch.int64"),
        ({"num_seen": 99}, {}, "after 99 tokens a cache holds"),
        ({"num_seen": "43"}, {}, "num_seen is '43'"),
        ({"num_seen": True}, {}, "num_seen is True"),
        ({"last": -1}, {}, "last is -1"),
        ({"last": 64}, {}, "its newest token 64 is not in the model"),
        ({}, {"sampler.seen": torch.tensor([1, 64])}, "seen tokens that are not in the model"),
        ({}, {"logits": torch.ones(9)}, "logits of 9 tokens, and the model has 64"),
        ({}, {"group.0.counts": torch.ones(5)}, r"counts .*float32 \(5,\), and torch.int64"),
        ({}, {"sampler.seen": None}, r"header is invalid \('sampler.seen'\); save another"),
        ({}, {"sampler.seen": torch.ones(3)}, "seen of a sampler's state is torch.float32"),
        ({}, {"sampler.generator": torch.zeros(3, dtype=torch.uint8)}, "the 3 bytes of"),
        (
            {"sampling": {"temperature": -1}},
            {},
            "header is invalid .*temperature=-1.*; save another",
        ),
        ({"sampling": {"beams": 4}}, {}, "header is invalid .*beams.*; save another"),
        ({"sampling": None}, {}, "header is invalid .*; save another"),
    ],
)
def test_whole_files_with_something_else_in_them_are_refused(
    saved: Path, path: Path, header: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    refused(engine_of(), changed(saved, path, header, tensors), message, InputError)


def test_an_interrupted_load_frees_the_batch_slot(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(rows=1)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._runner.cache, "apply", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.load(saved)
    monkeypatch.undo()
    assert engine.num_free == 1
    assert goes_on(engine.load(saved)) == goes_on(engine_of(rows=1).load(saved))


def test_a_load_needs_a_batch_slot(saved: Path) -> None:
    engine = engine_of(rows=1)
    session = opened(engine)
    refused(
        engine, saved, "all 1 batch slots are in use; close a session", UnsupportedOperationError
    )
    session.close()
    assert engine.load(saved).num_seen == read_header(saved)["num_seen"]


def test_what_cannot_be_saved_now(path: Path) -> None:
    engine = engine_of()
    session = opened(engine)
    stream = session.generate([5], max_new_tokens=3)
    with pytest.raises(UnsupportedOperationError, match="still generating; take its stream to the"):
        session.save(path)
    list(stream)
    engine._runner.cache.sequences[session._sequence.batch_slot].is_changing = True
    with pytest.raises(UnsupportedOperationError, match="interrupted half-way"):
        session.save(path)
    session.close()
    with pytest.raises(UnsupportedOperationError, match="the session is closed"):
        session.save(path)
    assert not path.exists()


def test_an_older_snapshot_stays_where_a_new_one_fails(saved: Path, tmp_path: Path) -> None:
    session = opened(engine_of())
    with pytest.raises(InputError, match=r"cannot write .*: No such file"):
        session.save(tmp_path / "missing" / "text")
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory"):
        session.save(str(saved / "text"))
    assert engine_of().load(str(saved)).num_seen == read_header(saved)["num_seen"]


OLD_LADDER = {
    "name": "ladder",
    "capacity": 16,
    "span": 2,
    "overlap": 0,
    "sinks": 2,
    "recent": 5,
    "refill": 3,
    "geometry": "interleaved",
    "unit": 1,
    "window_layers": [],
}
OLD_WINDOW = {"name": "streaming", "capacity": 14, "sinks": 1, "refill": 1}
OLD_GROUPS = {
    "name": "groups",
    "groups": [
        {
            "members": [1, [3, 0], [0, 1]],
            "policy": OLD_LADDER | {"capacity": 24, "span": 1, "recent": 4, "refill": 4},
        },
        {
            "members": [[0, 0], [3, 1]],
            "policy": OLD_WINDOW | {"capacity": 9, "sinks": 2, "refill": 4},
        },
        {"members": [2, 4], "policy": OLD_WINDOW | {"refill": 4}},
    ],
}


def test_policies_of_groups_are_shown_in_short(path: Path) -> None:
    opened(Engine(model(), *BY_HEAD)).save(path)
    groups = r"policy=3 groups of ladder and streaming at \d+"
    with pytest.raises(
        InputError, match=rf"with {groups}, and .* has policy=ladder:\S* at \d+; make"
    ):
        Engine(model(), *LADDER).load(path)
    opened(Engine(model(), *LADDER)).save(path)
    with pytest.raises(
        InputError, match=rf"with policy=ladder:\S* at \d+, and .* has {groups}; make"
    ):
        Engine(model(), *BY_HEAD).load(path)


def test_policies_that_are_alike_in_short_are_shown_whole(path: Path) -> None:
    opened(Engine(model(), *BY_HEAD)).save(path)
    members = ((1, (3, 1), (0, 0)), ((0, 1), (3, 0)), (2, 4))
    other = Groups(
        tuple(
            Group(group.policy, of_group, group.capacity)
            for group, of_group in zip(BY_HEAD[1].groups, members, strict=True)
        )
    )
    with pytest.raises(
        InputError, match=r'with policy="groups:.*, and .* has policy="groups:.*; make'
    ):
        Engine(model(), policy=other).load(path)


def at_slots(sized: Sized) -> Sized:
    """The same where keys stand at their slots, as they did in 0.1."""
    budget, policy = sized
    if not isinstance(policy, Groups):
        return budget, replace(policy, positions="slots")
    groups = [replace(g, policy=replace(g.policy, positions="slots")) for g in policy.groups]
    return budget, Groups(tuple(groups))


@pytest.mark.parametrize(("sized", "plan"), [(LADDER, OLD_LADDER), (BY_HEAD, OLD_GROUPS)])
def test_snapshots_of_version_0_1_go_on(path: Path, sized: Sized, plan: dict[str, Any]) -> None:
    """Those whose compactions were as they are now: of one group, or with one batch for all."""
    elsewhere, sized = sized, at_slots(sized)
    engine = Engine(model(), *sized, max_sequences=2)
    session = opened(engine)
    session.save(path)
    header, tensors = read_snapshot(path)
    write_snapshot(
        path, {n: v for n, v in header.items() if n != "policy"} | {"plan": plan}, tensors
    )
    assert goes_on(Engine(model(), *sized, max_sequences=2).load(path)) == goes_on(session)
    with pytest.raises(InputError, match="make the engine with the snapshot's policy"):
        Engine(model(), *elsewhere).load(path)
    other = {n: v for n, v in header.items() if n != "policy"} | {"plan": plan | {"name": "spiral"}}
    write_snapshot(path, other, tensors)
    with pytest.raises(InputError, match=r"was saved with a policy of lacache 0\.1 that cannot be"):
        engine.load(path)


def test_a_snapshot_of_version_0_1_with_other_compactions_is_refused(path: Path) -> None:
    engine = Engine(model(), *at_slots(BY_HEAD))
    opened(engine).save(path)
    header, tensors = read_snapshot(path)
    groups = [dict(group) for group in OLD_GROUPS["groups"]]
    groups[1] = groups[1] | {"policy": groups[1]["policy"] | {"refill": 3}}
    old = {n: v for n, v in header.items() if n != "policy"} | {
        "plan": OLD_GROUPS | {"groups": groups}
    }
    write_snapshot(path, old, tensors)
    with pytest.raises(InputError, match=r"policy of lacache 0\.1 that .*; prefill its text again"):
        engine.load(path)

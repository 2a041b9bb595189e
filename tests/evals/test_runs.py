import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lacache.cache.encoded import bytes_per_token
from lacache.common.records import Record, append_record, read_records
from lacache.common.validation import KV_DTYPES
from lacache.errors import ConfigError, InputError
from lacache.evals.baselines import TOVA, KeyDiff
from lacache.evals.perplexity import perplexity, score_tokens
from lacache.evals.policies import open_cache
from lacache.evals.provenance import tokens_sha256, weights_sha256
from lacache.evals.record_file import failures_path, recorded_specs, run_all
from lacache.evals.runner import EvalRunner
from lacache.evals.runs import Protocol, RunSpec
from lacache.evals.suite import QUICK, SMALL, Suite
from lacache.evals.tasks.passkey import Passkey
from lacache.evals.tasks.ppl import Perplexity
from lacache.models import LoadedModel
from lacache.models.model_info import model_info
from lacache.policies import BoundGroup, Full, Ladder, ModelShape, Policy, Streaming
from tests.engine.tiny import tiny_llama, tiny_tokenizer
from tests.evals.lookup import Digit, loaded_lookup

DENSE = Protocol("dense")
SPEC = RunSpec(Digit(), Streaming(), length=80, budget="40", count=4)


@pytest.fixture(scope="module")
def runner() -> EvalRunner:
    return EvalRunner(loaded_lookup())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"The {n}th line tells of {n * n} things.\n" for n in range(60)))
    return path


def timeless(record: Record) -> Record:
    return {k: v for k, v in record.items() if k not in ("seconds", "environment")}


def test_the_same_run_gives_the_same_record(runner: EvalRunner) -> None:
    again = EvalRunner(loaded_lookup())
    assert timeless(runner.run(SPEC)) == timeless(again.run(SPEC))


def test_a_record_says_what_was_measured_and_how(runner: EvalRunner) -> None:
    record = runner.run(replace(SPEC, task=Digit(60), seed=3, protocol=DENSE))
    assert json.loads(json.dumps(record)) == record
    assert list(record)[:2] == ["kind", "key"]
    assert record["kind"] == "eval"
    assert record["task"] == {"name": "digit", "place": 60, "questions": 1}
    policy = {"name": "streaming", "sinks": 4, "evict_batch": 0.125, "positions": "original"}
    assert record["policy"] == policy
    settings = ("length", "count", "seed", "budget", "prefill", "first_token")
    assert [record[name] for name in settings] == [80, 4, 3, "40", "dense", "cache"]
    assert record["kv_dtype"] is None
    assert record["kv_bits"] == 32
    assert record["model"]["name"] == "lookup"
    assert len(record["model"]["weights_sha256"]) == 64
    assert record["score"] == 1.0
    assert record["score_interval"] == [1.0, 1.0]
    assert record["capacity"] == 40
    samples = record["samples"]
    assert [sample["predictions"] for sample in samples] == [["0"], ["1"], ["2"], ["3"]]
    assert [sample["answers"] for sample in samples] == [[["0"]], [["1"]], [["2"]], [["3"]]]
    for name in ("nll", "peak_bytes", "mean_bytes", "full_bytes"):
        mean = sum(sample[name] for sample in samples) / 4
        assert record[name] == pytest.approx(mean, abs=0.1)
    assert record["environment"]["threads"] == torch.get_num_threads()


def test_intervals_lie_around_the_mean(runner: EvalRunner) -> None:
    spec = replace(SPEC, budget="0.5", count=6)
    record = runner.run(replace(spec, task=Half()))
    assert record["score"] == 0.5
    assert record["score_interval"][0] < 0.5 < record["score_interval"][1]
    assert record["nll_interval"][0] < record["nll"] < record["nll_interval"][1]


@dataclass(frozen=True)
class Half(Passkey):
    """Every other digit is dropped by a small cache."""

    name: ClassVar[str] = "half"

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> Any:
        near, far = (
            Digit(place).samples(tokenizer, length=length, count=count, seed=seed)
            for place in (60, 10)
        )
        return [pair[i % 2] for i, pair in enumerate(zip(near, far, strict=True))]

    def score(self, prediction: str, question: Any) -> float:
        return float(prediction == question.answers[0])


CHANGES: list[dict[str, Any]] = [
    {"task": Digit(11)},
    {"policy": Streaming(sinks=3)},
    {"policy": Ladder(span=3)},
    {"length": 81},
    {"budget": "41"},
    {"count": 5},
    {"seed": 1},
    {"protocol": DENSE},
    {"protocol": Protocol("dense", "dense")},
    *({"kv_dtype": name} for name in KV_DTYPES),
]


def test_every_setting_changes_the_key(runner: EvalRunner) -> None:
    keys = [runner.key(spec) for spec in (SPEC, *(replace(SPEC, **c) for c in CHANGES))]
    assert len(set(keys)) == len(keys)
    assert runner.key(replace(SPEC)) == keys[0]
    changed = loaded_lookup()
    with torch.no_grad():
        changed.model.lm_head.weight[0, 0] = 0.5
    assert EvalRunner(changed).key(SPEC) != keys[0]
    # The name under which a model was loaded does not matter.
    assert EvalRunner(replace(loaded_lookup(), name="other")).key(SPEC) == keys[0]


def test_records_from_before_there_was_a_kv_dtype_are_of_the_models_own_type(
    runner: EvalRunner, tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    (done,) = run_all(runner, [SPEC], path)
    assert done.record is not None
    old = {k: v for k, v in done.record.items() if k not in ("kv_dtype", "kv_bits")}
    model = {k: old["model"][k] for k in ("architecture", "dtype", "weights_sha256")}
    settings = {k: old[k] for k in SPEC.record() if k != "kv_dtype"}
    text = json.dumps({**settings, "model": model}, sort_keys=True)
    assert old["key"] == hashlib.sha256(text.encode()).hexdigest()

    path.write_text(json.dumps(old) + "\n")
    eight = replace(SPEC, kv_dtype="int8")
    assert recorded_specs([SPEC, eight], path, model="lookup") == {SPEC}
    outcomes = list(run_all(runner, [SPEC, eight], path))
    assert [outcome.was_recorded for outcome in outcomes] == [True, False]
    assert recorded_specs([SPEC, eight], path, model="lookup") == {SPEC, eight}
    assert [o.was_recorded for o in run_all(runner, [eight, SPEC], path)] == [True, True]


@pytest.mark.parametrize("policy", [Full(), Streaming(), KeyDiff(), TOVA()])
@pytest.mark.parametrize("protocol", [Protocol(), DENSE])
def test_bytes_are_those_of_the_stored_format(
    runner: EvalRunner, policy: Policy, protocol: Protocol
) -> None:
    spec = replace(SPEC, policy=policy, protocol=protocol, budget="0.5")
    whole, eight = (runner.run(replace(spec, kv_dtype=name)) for name in (None, "int8"))
    model = loaded_lookup().model
    info = model_info(model)
    bits = 32 * bytes_per_token(info, "int8") / info.bytes_per_token
    assert whole["kv_bits"] == 32
    assert eight["kv_bits"] == pytest.approx(bits, abs=1e-3)
    assert (whole["kv_dtype"], eight["kv_dtype"]) == (None, "int8")
    assert eight["capacity"] == whole["capacity"]
    for name in ("peak_bytes", "mean_bytes", "full_bytes"):
        assert eight[name] == pytest.approx(whole[name] * bits / 32, rel=1e-3)


def test_a_budget_in_bytes_is_for_what_is_stored(runner: EvalRunner) -> None:
    per_token = bytes_per_token(model_info(loaded_lookup().model), "int8")
    spec = replace(SPEC, kv_dtype="int8", budget=f"{41 * per_token - 1}B")
    record = runner.run(spec)
    assert record["capacity"] == 40
    assert record["peak_bytes"] == 40 * per_token


def test_the_hash_of_weights_differs_between_models() -> None:
    first = weights_sha256(tiny_llama(seed=0))
    assert weights_sha256(tiny_llama(seed=0)) == first
    assert weights_sha256(tiny_llama(seed=1)) != first
    assert weights_sha256(tiny_llama(seed=0).to(torch.bfloat16)) != first


@pytest.mark.parametrize("policy", [Full(), Streaming(sinks=2), Ladder(span=2)])
def test_perplexity_is_that_of_scored_tokens(text: Path, policy: Policy) -> None:
    loaded = LoadedModel(tiny_llama(), tiny_tokenizer(), "tiny", Path())
    task = Perplexity(text=str(text), start=7)
    record = EvalRunner(loaded).run(RunSpec(task, policy, length=600, budget="64"))
    ids = loaded.tokenizer(text.read_text()).input_ids[7:607]
    nll = score_tokens(loaded.model, ids, open_cache(loaded.model, policy, 64), chunk_size=5)
    assert record["kind"] == "ppl"
    assert record["task"] == {"name": "ppl", "text": str(text), "start": 7}
    assert record["samples_sha256"] == tokens_sha256(ids)
    assert record["nll"] == pytest.approx(nll, abs=2e-3)
    assert record["perplexity"] == pytest.approx(perplexity(nll), rel=1e-3)
    low, high = record["perplexity_interval"]
    assert low < record["perplexity"] < high
    assert [b[:2] for b in record["by_position"]] == [[0, 256], [256, 512], [512, 600]]
    assert record["by_position"][1][2] == pytest.approx(perplexity(nll[255:511]), rel=1e-3)
    per_token = 5 * 2 * 8 * 2 * 4
    assert record["full_bytes"] == 600 * per_token
    full = isinstance(policy, Full)
    assert record["capacity"] == (None if full else 64)
    assert record["peak_bytes"] == (600 if full else 64) * per_token
    assert "samples" not in record


def test_a_perplexity_run_is_held_to_its_budget(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lacache.evals.monitor import ProtocolError
    from tests.evals.test_answering import cheat

    monkeypatch.setattr("lacache.evals.monitor.open_cache", cheat)
    runner = EvalRunner(LoadedModel(tiny_llama(), tiny_tokenizer(), "tiny", Path()))
    with pytest.raises(ProtocolError):
        runner.run(RunSpec(Perplexity(text=str(text)), Streaming(), length=300, budget="64"))


def test_a_text_that_is_too_short_is_refused(runner: EvalRunner, text: Path) -> None:
    with pytest.raises(InputError, match="try a shorter length or a longer text"):
        runner.run(RunSpec(Perplexity(text=str(text)), Full(), length=100_000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 1}, "length=1 must be at least 2"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"budget": "2.5"}, "budget=2.5 as a share"),
        ({"budget": "x"}, "budget='x' must be a number of tokens, a share or"),
        ({"task": Perplexity(), "count": 1, "protocol": DENSE}, "cannot be used for perplexity"),
        ({"kv_dtype": "int3"}, "kv_dtype='int3' must be None"),
        ({"task": Perplexity()}, "count=4 of a perplexity run must be 1"),
    ],
)
def test_bad_specifications_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SPEC, **changes)


SPECS = [replace(SPEC, policy=policy) for policy in (Full(), Streaming(), Ladder(span=3))]


def test_runs_go_on_where_they_were_interrupted(
    runner: EvalRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / "runs.jsonl"
    run = EvalRunner.run
    begun: list[str] = []

    def interrupted(self: EvalRunner, spec: RunSpec, on_tokens: Any = None) -> Record:
        begun.append(str(spec.policy).partition(":")[0])
        if len(begun) == 3:
            raise KeyboardInterrupt
        return run(self, spec, on_tokens)

    monkeypatch.setattr(EvalRunner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_all(runner, SPECS, path))
    first_two = read_records(path)
    assert [record["policy"]["name"] for record in first_two] == ["full", "streaming"]
    outcomes = list(run_all(runner, SPECS, path))
    assert begun == ["full", "streaming", "ladder", "ladder"]
    assert [outcome.was_recorded for outcome in outcomes] == [True, True, False]
    assert read_records(path)[:2] == first_two
    assert [outcome.record for outcome in outcomes] == read_records(path)
    assert [timeless(r) for r in read_records(path)] == [timeless(runner.run(s)) for s in SPECS]


@dataclass(frozen=True)
class Broken(Policy):
    """Fails with an error that nobody foresaw."""

    names: ClassVar = {"broken": {}}

    def bind(self, shape: ModelShape, capacity: int) -> tuple[BoundGroup, ...]:
        raise RuntimeError("out of\nmemory")


def test_a_run_that_fails_costs_no_other(runner: EvalRunner, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    too_small = replace(SPEC, policy=Ladder(span=3), budget="5")
    broken = replace(SPEC, policy=Broken())
    outcomes = list(run_all(runner, [SPECS[0], too_small, broken, SPECS[1]], path))
    assert [outcome.record is None for outcome in outcomes] == [False, True, True, False]
    assert "budget=5 must be at least 6 tokens" in outcomes[1].error
    assert outcomes[2].error == "RuntimeError: out of memory"
    assert len(read_records(path)) == 2
    told = read_records(failures_path(path))
    assert [failure["error"] for failure in told] == [outcomes[1].error, outcomes[2].error]
    assert told[0]["traceback"] == ""
    assert "raise RuntimeError" in told[1]["traceback"]
    # They are tried again, as the cause may be gone.
    assert [o.was_recorded for o in run_all(runner, [SPECS[0], broken], path)] == [True, False]


def test_other_samples_are_not_mixed_into_a_file(
    runner: EvalRunner, tmp_path: Path, text: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    spec = RunSpec(Perplexity(text=str(text)), Full(), length=300)
    assert [o.error for o in run_all(runner, [spec], path)] == [""]
    text.write_text("Something else. " + text.read_text())
    other = replace(spec, policy=Streaming(), budget="64")
    (outcome,) = run_all(EvalRunner(loaded_lookup()), [other], path)
    assert "are not those of the records in" in outcome.error
    # The record of the same specification is one of another text, too.
    (outcome,) = run_all(EvalRunner(loaded_lookup()), [spec], path)
    assert "are not those of the records in" in outcome.error
    assert outcome.record is None
    assert len(read_records(path)) == 1


def test_a_file_that_is_no_file_of_records_is_refused_at_once(
    runner: EvalRunner, text: Path
) -> None:
    with pytest.raises(InputError, match=r"line 1 of .* is not JSON"):
        next(run_all(runner, SPECS, text))
    with pytest.raises(InputError, match="cannot"):
        next(run_all(runner, SPECS, text / "below-a-file"))


def test_the_progress_counts_what_is_read(runner: EvalRunner, tmp_path: Path) -> None:
    counted: list[int] = []
    started: list[RunSpec] = []
    list(
        run_all(
            runner,
            [SPEC],
            tmp_path / "runs.jsonl",
            on_start=started.append,
            on_tokens=counted.append,
        )
    )
    # The last token of each prompt is answered with one token, which is not read.
    assert sum(counted) == 4 * 79
    assert started == [SPEC]
    assert SPEC.tokens == 4 * 80


def test_records_of_other_kinds_do_not_matter(runner: EvalRunner, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, {"kind": "something else"})
    assert [o.was_recorded for o in run_all(runner, SPECS[:1], path)] == [False]


TINY = Suite(
    tasks=("passkey", "ppl"),
    policies=("full", "streaming", "ladder:span=3"),
    budgets=("0.25", "64"),
    lengths=(512, 1024),
    ppl_budgets=("128",),
    ppl_lengths=(2048,),
    prefills=("chunked", "dense"),
    first_token="dense",
    samples=3,
    seed=7,
)


def test_a_suite_is_every_combination_once() -> None:
    runs = TINY.runs()
    answers = [run for run in runs if run.task.name == "passkey"]
    assert len(answers) == 2 * (1 + 2 * 2 * 2)
    for run in answers:
        assert (run.count, run.seed) == (3, 7)
        assert run.protocol.first_token == ("dense" if run.protocol.is_dense else "cache")
        if run.is_full:
            assert (run.budget, run.protocol) == ("1.0", Protocol())
    ppl = [run for run in runs if run.task.name == "ppl"]
    assert [(str(run.policy), run.budget) for run in ppl] == [
        ("full", "1.0"),
        ("streaming", "128"),
        ("ladder:span=3", "128"),
    ]
    assert {(run.length, run.count, run.seed, run.protocol) for run in ppl} == {
        (2048, 1, 0, Protocol())
    }
    assert len(set(runs)) == len(runs) == len(answers) + len(ppl)


def test_one_type_of_keys_and_values_is_for_every_run_of_a_suite() -> None:
    eight = replace(TINY, kv_dtype="int8").runs()
    assert eight == [replace(run, kv_dtype="int8") for run in TINY.runs()]
    assert {run.kv_dtype for run in TINY.runs()} == {None}


def test_runs_of_the_same_samples_follow_each_other() -> None:
    order = [(run.task, run.length) for run in TINY.runs()]
    assert order == sorted(order, key=[*dict.fromkeys(order)].index)


@pytest.mark.parametrize("suite", [SMALL, QUICK])
def test_the_suites_can_be_run(suite: Suite) -> None:
    assert {run.task.name for run in suite.runs()} >= {"passkey", "needle", "ppl"}
    assert {str(run.policy) for run in suite.runs()} == {
        *("full", "streaming", "balanced", "recall")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "no tasks were given"),
        ({"policies": ("x",)}, "policy='x' must be one of"),
        ({"tasks": ("x",)}, "task 'x' must be one of"),
        ({"kv_dtype": "int3"}, "kv_dtype='int3' must be None"),
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"prefills": ("loose",), "first_token": "cache"}, "prefill='loose' must be"),
        ({"prefills": ("chunked",)}, "needs a dense prefill"),
        ({"tasks": ("ppl",), "prefills": ("dense",)}, "nothing to run"),
    ],
)
def test_bad_suites_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes).runs()


def test_the_samples_hash_covers_every_question(runner: EvalRunner) -> None:
    (sample,) = Digit().samples(None, length=80, count=1, seed=0)
    expected = json.dumps([[sample.context, [["\n", ["0"], 1]]]])
    record = runner.run(replace(SPEC, count=1))
    assert record["samples_sha256"] == hashlib.sha256(expected.encode()).hexdigest()

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from lacache.common.records import read_records
from lacache.evals.baselines import BASELINES
from lacache.evals.runner import EvalRunner
from lacache.evals.tasks.longbench import load_prompt
from lacache.evals.tasks.registry import TASKS
from lacache.policies import Ladder
from tests.cli.conftest import Run
from tests.evals.lookup import Digit
from tests.evals.test_runs import Broken


@pytest.fixture
def evaluate(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A short evaluation of a tiny model, with room for more options."""
    monkeypatch.setitem(TASKS, "digit", Digit)
    monkeypatch.setattr("lacache.evals.policies.BASELINES", (*BASELINES, Broken))

    def invoke(*arguments: object) -> Any:
        options: dict[object, object] = {
            "--model": tiny,
            "--tasks": "digit",
            "--policy": "full;streaming;ladder:span=3:sinks=2",
            "--budget": "0.5",
            "--lengths": "80",
            "--samples": 2,
            "--out": tmp_path / "runs.jsonl",
        }
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        flat = [part for pair in (options | given).items() for part in pair if part is not None]
        return run("eval", *flat)

    return invoke


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def test_it_measures_records_and_prints(evaluate: Run, out: Path) -> None:
    result = evaluate()
    assert result.exit_code == 0, result.output
    records = read_records(out)
    assert [r["policy"]["name"] for r in records] == ["full", "streaming", "ladder"]
    assert records[2]["policy"]["span"] == 3
    lines = [line.split() for line in result.stdout.splitlines()]
    assert "digit, 80 tokens, 2 samples, tiny" in result.stdout
    for name, record in zip(("full", "streaming", "ladder:"), records, strict=True):
        (line,) = (line for line in lines if line and line[0].startswith(name))
        assert line[-3:] == [
            f"{record['mean_bytes'] / 1024:,.0f}",
            f"{record['peak_bytes'] / 1024:,.0f}",
            f"{record['peak_bytes'] / record['full_bytes']:.0%}",
        ]
        assert f"{record['nll']:.2f}" in line
    assert "streaming at 0.5: score" in result.stderr


def test_a_second_time_nothing_is_run_and_all_is_shown(
    evaluate: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate()
    before = out.read_bytes()

    def must_not_run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(EvalRunner, "run", must_not_run)
    second = evaluate()
    assert second.exit_code == 0, second.output
    assert "3 of 3 runs were in" in " ".join(second.stderr.split())
    assert second.stdout == first.stdout
    assert out.read_bytes() == before


def test_json_is_what_was_recorded(evaluate: Run, out: Path) -> None:
    printed = json.loads(evaluate("--json", None).stdout)
    assert printed["out"] == str(out)
    assert printed["failures"] == []
    for short, record in zip(printed["runs"], read_records(out), strict=True):
        assert short == {k: v for k, v in record.items() if k != "samples"}


def test_perplexity_of_a_file_has_a_table_of_its_own(
    evaluate: Run, out: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes a dull text. " * 20)
    result = evaluate("--tasks", f"ppl:text={text}", "--lengths", 300, "--budget", "64")
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.stdout
    assert [r["kind"] for r in read_records(out)] == ["ppl"] * 3
    assert [len(r["nll"]) for r in read_records(out)] == [299] * 3
    shown = json.loads(
        evaluate(
            "--tasks", f"ppl:text={text}", "--lengths", 300, "--budget", "64", "--json", None
        ).stdout
    )
    assert all("nll" not in record for record in shown["runs"])


def test_no_run_begins_after_the_limit_and_the_same_command_continues(
    evaluate: Run, out: Path
) -> None:
    first = evaluate("--minutes", 0)
    assert first.exit_code == 0, first.output
    assert "0 minutes are over: 3 of 3 runs are left" in " ".join(first.stderr.split())
    assert not out.exists()
    assert evaluate("--minutes", 10, "--policy", "full").exit_code == 0
    again = evaluate("--minutes", 0)
    assert "2 of 3 runs are left" in " ".join(again.stderr.split())
    assert " full " in again.stdout
    assert evaluate().exit_code == 0
    assert len(read_records(out)) == 3


def test_a_dense_pass_for_several_runs_is_in_the_sum_once(evaluate: Run) -> None:
    def tokens(*more: object) -> Any:
        return json.loads(evaluate("--dry-run", None, "--json", None, *more).stdout)["tokens"]

    several = ("--budget", "0.3,0.5", "--prefill", "dense")
    assert tokens() == 3 * 160
    # The full cache, and the one pass of the others, which ends before the last token.
    assert tokens(*several) == 2 * 160
    assert tokens(*several, "--first-token", "dense") == 160
    assert tokens(*several, "--policy", "streaming,keydiff,tova") == 3 * 160
    assert "One dense pass over a sample serves" in evaluate("--dry-run", None, *several).stdout


def test_the_full_cache_stands_beside_every_protocol(evaluate: Run, out: Path) -> None:
    result = evaluate("--prefill", "chunked,dense", "--first-token", "dense")
    assert result.exit_code == 0, result.output
    assert [r["prefill"] for r in read_records(out)] == ["chunked"] * 3 + ["dense"] * 2
    assert [r["first_token"] for r in read_records(out)][3:] == ["dense"] * 2
    chunked, dense = result.stdout.split("dense, first token from the dense pass")
    assert " full " in chunked
    assert " full " in dense
    told = "counted after the dense pass"
    assert told in " ".join(result.stdout.split())
    assert told not in " ".join(evaluate().stdout.split())


def test_every_policy_of_a_run_stores_the_same_bits(evaluate: Run, out: Path) -> None:
    policies = "full;streaming;keydiff;tova"
    whole = evaluate("--policy", policies)
    assert whole.exit_code == 0, whole.output
    assert "bits for each number" not in whole.stdout
    eight = evaluate("--policy", policies, "--kv-dtype", "int8")
    assert eight.exit_code == 0, eight.output
    assert "already" not in eight.stderr
    records = read_records(out)
    assert [r["kv_dtype"] for r in records] == [None] * 4 + ["int8"] * 4
    bits = {r["kv_bits"] for r in records[4:]}
    assert len(bits) == 1
    assert f"{bits.pop():.3g} bits for each number" in " ".join(eight.stdout.split())
    assert "digit, 80 tokens, 2 samples, keys and values in int8, tiny" in eight.stdout
    for wide, narrow in zip(records[:4], records[4:], strict=True):
        assert narrow["policy"] == wide["policy"]
        assert narrow["capacity"] == wide["capacity"]
        shares = [r["peak_bytes"] / r["full_bytes"] for r in (wide, narrow)]
        assert shares[0] == pytest.approx(shares[1])
        assert narrow["peak_bytes"] < wide["peak_bytes"] / 2


def test_a_dry_run_knows_the_bits(evaluate: Run, out: Path) -> None:
    assert evaluate("--kv-dtype", "int8").exit_code == 0
    told = evaluate("--dry-run", None, "--kv-dtype", "int8").stdout
    assert "All policies store keys and values in int8." in told
    assert "3 are in" in told
    other = evaluate("--dry-run", None).stdout
    assert "already" not in other
    assert "keys and values" not in other
    runs = json.loads(evaluate("--dry-run", None, "--kv-dtype", "int8", "--json", None).stdout)
    assert {run["kv_dtype"] for run in runs["runs"]} == {"int8"}
    assert all(run["in_out"] for run in runs["runs"])


def test_a_recipe_takes_a_type_of_keys_and_values(run: Run) -> None:
    recipe = ("eval", "recipe", "wikitext-16k", "--kv-dtype", "int8", "--dry-run")
    assert "keys and values: int8" in run(*recipe).stdout
    runs = json.loads(run(*recipe, "--json").stdout)["runs"]
    assert {each["kv_dtype"] for each in runs} == {"int8"}


def test_a_failed_run_is_reported_and_the_others_go_on(
    evaluate: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/lacache", "eval", "--tasks", "ppl;needle"])
    result = evaluate("--policy", "ladder:span=3;broken;streaming", "--budget", "5")
    assert result.exit_code == 1, result.output
    assert [r["policy"]["name"] for r in read_records(out)] == ["streaming"]
    told = " ".join(result.stdout.split())
    assert told.count("failed: digit") == 2
    assert "budget=5 must be at least" in told
    assert "RuntimeError: out of memory" in told
    assert "runs.failures.log" in told
    assert (out.parent / "runs.failures.log").exists()
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"2 of 3 runs failed, the others are in {out}; ")
    assert last.endswith("them: lacache eval --tasks 'ppl;needle'")
    printed = json.loads(
        evaluate("--policy", "broken;streaming", "--budget", "5", "--json", None).stdout
    )
    assert [f["error"] for f in printed["failures"]] == ["RuntimeError: out of memory"]


def test_where_every_run_fails_the_command_fails(evaluate: Run) -> None:
    result = evaluate("--policy", "broken")
    assert result.exit_code == 1
    assert "out of memory" in result.stdout
    assert "1 of 1 runs failed; to retry" in result.stderr


def test_ctrl_c_keeps_what_was_done(
    evaluate: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = EvalRunner.run

    def interrupted(self: EvalRunner, spec: Any, on_tokens: Any = None) -> Any:
        if isinstance(spec.policy, Ladder):
            raise KeyboardInterrupt
        return run(self, spec, on_tokens)

    monkeypatch.setattr(EvalRunner, "run", interrupted)
    result = evaluate()
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-2:] == [
        "2 of 3 runs are done; the same command continues there",
        "stopped",
    ]
    assert [r["policy"]["name"] for r in read_records(out)] == ["full", "streaming"]


def test_a_dry_run_lists_what_would_be_run(evaluate: Run, out: Path) -> None:
    # A name of the hub: nothing is asked for it.
    result = evaluate("--dry-run", None, "--lengths", "80,160", "--model", "no/such-model")
    assert result.exit_code == 0, result.output
    assert "6 runs, about 1,440 tokens to prefill." in result.stdout
    assert "already" not in result.stdout
    printed = json.loads(evaluate("--dry-run", None, "--json", None).stdout)
    assert [r["policy"]["name"] for r in printed["runs"]] == ["full", "streaming", "ladder"]
    assert printed["tokens"] == 3 * 160
    assert not out.exists()


def test_a_dry_run_subtracts_what_is_in_the_file(evaluate: Run, out: Path, tiny: Path) -> None:
    assert evaluate().exit_code == 0
    before = out.read_bytes()
    result = evaluate("--dry-run", None, "--lengths", "80,160")
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    assert "6 runs, about 1,440 tokens to prefill. 3 are in" in told
    assert "3 left, about 960 tokens." in told
    assert [line.split()[-1] for line in result.stdout.splitlines() if " chunked " in line] == [
        *["done"] * 3,
        *["320"] * 3,
    ]
    printed = json.loads(evaluate("--dry-run", None, "--lengths", "80,160", "--json", None).stdout)
    assert printed["left"] == {"runs": 3, "tokens": 960}
    assert [run["in_out"] for run in printed["runs"]] == [True] * 3 + [False] * 3
    # What the dry run says is what the run does.
    assert "3 of 6 runs were in" in " ".join(evaluate("--lengths", "80,160").stderr.split())
    for other in (("--model", f"{tiny}-2"), ("--dtype", "bfloat16"), ("--seed", 1)):
        (Path(f"{tiny}-2")).mkdir(exist_ok=True)
        (Path(f"{tiny}-2") / "config.json").write_text("{}")
        assert "already" not in evaluate("--dry-run", None, *other).stdout
    assert out.read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--model", "./no/such/model", "model './no/such/model' does not exist"),
        ("--tasks", "digit;ppl:text=no.txt", "'no.txt' is neither a file nor one of"),
        ("--tasks", "needle:haystack=no.txt;digit", "'no.txt' is neither a file nor one of"),
        ("--tasks", "multiturn:haystack=no.txt;digit", "'no.txt' is neither a file nor one of"),
        ("--tasks", "document-needles:text=no.txt;digit", "'no.txt' is neither a file nor one of"),
        ("--tasks", "ruler-qa_squad:data=no.json", "data=no.json must be a file"),
        ("--tasks", "ruler-niah_single_2:haystack=no.txt", "'no.txt' is neither a file nor one of"),
        ("--tasks", "longbench-lcc:folder=nowhere", "nowhere/lcc.jsonl cannot be read"),
    ],
)
def test_a_dry_run_says_what_is_missing(evaluate: Run, option: str, value: str, told: str) -> None:
    if value.startswith(("ruler", "longbench")):
        pytest.importorskip("lm_eval")
    result = evaluate("--dry-run", None, option, value)
    assert result.exit_code == 1
    missing = [line for line in result.stdout.splitlines() if line.startswith("missing for ")]
    assert len(missing) == 1
    assert told in missing[0]
    printed = json.loads(evaluate("--dry-run", None, option, value, "--json", None).stdout)
    assert len(printed["missing"]) == 1


def test_a_dry_run_says_which_extra_is_missing(
    evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_prompt.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "lm_eval" else find_spec(name, *rest),
    )
    result = evaluate("--dry-run", None, "--tasks", "longbench-lcc;digit")
    assert result.exit_code == 1
    assert "try: pip install 'lacache[evals]'" in result.stdout


def test_the_quick_suite_is_far_smaller_than_the_small_one(run: Run) -> None:
    small, quick = (
        json.loads(run("eval", "--dry-run", "--json", *more).stdout)["tokens"]
        for more in ((), ("--quick",))
    )
    # At some 250 tokens a second: 40 and 3 minutes, with time left for the answers.
    assert small < 450_000
    assert quick < 20_000


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tasks", "nothing", "task 'nothing' must be one of"),
        ("--tasks", "digit:depth=3", "task 'digit' has no setting 'depth'"),
        ("--policy", "magic", "policy='magic' must be one of"),
        ("--policy", ";", "no policies were given"),
        ("--budget", "1.5", "budget=1.5 as a share"),
        ("--lengths", "many", "lengths=many must be whole numbers"),
        ("--lengths", "0", "length=0 must be at least 2"),
        ("--prefill", "loose", "prefill='loose' must be chunked or dense"),
        ("--first-token", "dense", "needs a dense prefill"),
        ("--first-token", "last", "first_token='last' must be"),
        ("--samples", 0, "samples=0 must be at least 1"),
        ("--seed", -1, "seed=-1 must be at least 0"),
        ("--kv-dtype", "int3", "kv_dtype='int3' must be None"),
        ("--threads", 0, "threads=0 must be at least 1"),
        ("--model", "./no/such/model", "does not exist"),
        ("--out", "/dev/null/runs.jsonl", "cannot"),
    ],
)
def test_bad_options_end_in_one_line_before_any_run(
    evaluate: Run, out: Path, option: str, value: object, message: str
) -> None:
    result = evaluate(option, value)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not out.exists()


def test_a_file_of_something_else_is_left_alone(evaluate: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("# Notes\n")
    result = evaluate("--out", notes)
    assert result.exit_code == 2
    assert "line 1 of" in result.stderr
    assert notes.read_text() == "# Notes\n"


@pytest.mark.slow
def test_the_real_model_finds_a_passkey_in_a_full_cache_alone(run: Run, out: Path) -> None:
    result = run(
        *("eval", "--tasks", "passkey", "--policy", "full;streaming", "--budget", "0.3"),
        *("--lengths", 400, "--samples", 2, "--out", out),
    )
    assert result.exit_code == 0, result.output
    full, streaming = read_records(out)
    assert full["score"] == 1.0
    assert full["nll"] < 2 < streaming["nll"]
    assert streaming["peak_bytes"] < 0.31 * full["peak_bytes"]

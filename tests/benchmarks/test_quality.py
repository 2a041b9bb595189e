"""The plan of the quality tables, and that it runs round by round."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.quality import (
    FIRST_SEED,
    KEEP_ALL,
    LARGE,
    NEEDLES,
    Part,
    parts,
    run_parts,
    show_plan,
    task_text,
)
from lacache.common.records import read_records
from lacache.evals.baselines import ScoredPolicy
from lacache.evals.policies import parse_eval_policy
from lacache.evals.runs import Protocol, RunSpec
from lacache.evals.tasks.registry import RULER, parse_task
from lacache.policies import ModelShape, bind_policy
from lacache.policies.head_profile import read_profile
from tests.evals.lookup import Digit, loaded_lookup

PARTS = {part.name: part for part in parts()}
PROFILES = Path(__file__).parents[2] / "src/lacache/policies/profiles"
SHAPES = {
    "quality-1.5b": ModelShape(
        (2,) * 28, read_profile(PROFILES / "qwen2.5-coder-1.5b-instruct.json")
    ),
    "quality-135m": ModelShape((3,) * 30, read_profile(PROFILES / "smollm2-135m-instruct.json")),
}


def test_ruler_has_all_tasks_without_files_and_enough_samples() -> None:
    for name in ("ruler-dense", "ruler-strict", "smollm2-ruler-dense", "smollm2-ruler-strict"):
        specs = PARTS[name].specs
        at_25 = [s for s in specs if s.budget == "0.25" and s.policy == parse_eval_policy(KEEP_ALL)]
        samples: dict[str, int] = {}
        for spec in at_25:
            samples[spec.task.name] = samples.get(spec.task.name, 0) + spec.count
        questions = {"ruler-qa_squad", "ruler-qa_hotpot"}
        assert set(samples) == {*RULER, "passkey"} - questions
        assert {t: n for t, n in samples.items() if n >= 20} == dict.fromkeys(NEEDLES, 20)
        assert min(samples.values()) == 10
        assert {spec.budget for spec in specs if not spec.is_full} == {"0.25", "0.5", "0.15"}
        assert all(s.protocol.is_dense == ("dense" in name) for s in specs if not s.is_full)
    whole = {s.task.name for s in parts("squad.json", "hotpot.json")[1].specs}
    assert whole == {*RULER, "passkey"}


def test_samples_are_held_out_and_no_run_is_planned_twice() -> None:
    for part in PARTS.values():
        assert len(part.specs) == sum(map(len, part.rounds))
        assert all(s.is_perplexity or s.seed >= FIRST_SEED for s in part.specs)
        for specs in part.rounds:
            # Runs of the same samples stand together, so that they share a dense pass.
            inputs = [(s.task, s.length, s.seed) for s in specs]
            runs = [i for i, one in enumerate(inputs) if i == 0 or inputs[i - 1] != one]
            assert len(runs) == len(set(inputs))


@pytest.mark.parametrize("name", PARTS)
def test_every_policy_works_in_its_model_at_its_budget(name: str) -> None:
    part = PARTS[name]
    shape = SHAPES[part.folder]
    for spec in {(s.policy, s.budget, s.length): s for s in part.specs}.values():
        if spec.policy.takes_budget and not isinstance(spec.policy, ScoredPolicy):
            sizes = {"bytes_per_token": 1, "prompt_tokens": spec.length}
            bound = bind_policy(spec.policy, spec.budget, shape, **sizes)
            # And not a larger capacity, for want of room.
            assert bound.capacity == spec.parsed_budget.capacity(**sizes, smallest=1)


@pytest.mark.parametrize("folder", SHAPES)
def test_some_heads_keep_the_whole_prompt_in_the_bytes_of_the_others(folder: str) -> None:
    length = 2048 if folder == LARGE.folder else 1024
    shape = SHAPES[folder]
    bound = bind_policy(
        parse_eval_policy(KEEP_ALL), 0.25, shape, bytes_per_token=1, prompt_tokens=length
    )
    history, window = bound.groups
    # And the longest answer, of 120 tokens, which the prompt has room for.
    assert history.schedule.capacity >= length
    share = sum(map(len, history.heads.values())) / sum(shape.num_heads)
    assert share == pytest.approx(0.125, abs=0.01)
    assert window.schedule.final_capacity <= length // 8
    assert str(parse_eval_policy(KEEP_ALL)) == KEEP_ALL


def test_the_papers_ladders_are_those_of_the_released_code() -> None:
    for overlap in (0, 7):
        paper = parse_eval_policy(LARGE.ladder(overlap, exact=True))
        released = parse_eval_policy(
            f"ladder:span=14:overlap={overlap}:positions=slots:evict_batch=1:recent=28"
        )
        assert paper.bind(SHAPES[LARGE.folder], 512)[0].schedule == (
            released.bind(SHAPES[LARGE.folder], 512)[0].schedule
        )
        consecutive = LARGE.ladder(overlap, "consecutive", exact=True)
        assert consecutive.endswith("geometry=consecutive:evict_batch=1:recent=28")


def test_answers_end_where_the_right_one_may_end() -> None:
    assert task_text("ruler-vt") == "ruler-vt"
    assert task_text("ruler-niah_single_2").endswith(":max_new_tokens=32")
    assert task_text("ruler-niah_multikey_3").endswith(":max_new_tokens=64")
    assert parse_task(task_text("ruler-niah_multivalue")).name == "ruler-niah_multivalue"


def made_up(name: str, dense: bool) -> Part:
    protocol = Protocol("dense" if dense else "chunked")
    rounds = tuple(
        tuple(
            RunSpec(Digit(place), parse_eval_policy("streaming"), 80, "0.5", 2, seed, protocol)
            for place in (10, 60)
        )
        for seed in range(100, 103 if dense else 102)
    )
    return Part(name, "folder", name, rounds)


def test_rounds_of_the_parts_alternate_and_a_limit_ends_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, console = loaded_lookup(), Console(file=io.StringIO(), width=200)
    chosen = [made_up("one", dense=False), made_up("two", dense=True)]
    assert run_parts(chosen, loaded, minutes=0, results=tmp_path, console=console) == 0
    assert not list(tmp_path.rglob("*.jsonl"))
    assert run_parts(chosen, loaded, results=tmp_path, console=console) == 0
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    order = [line.split(", ")[:2] for line in printed.splitlines() if ", seed " in line]
    assert order == [
        [name, f"seed {seed}"]
        for seed, names in ((100, ("one", "two")), (101, ("one", "two")), (102, ("two",)))
        for name in names
        for _ in range(2)
    ]
    assert "two: 6 of 6 runs are in" in printed
    records = read_records(tmp_path / "folder" / "two.jsonl")
    assert [record["seed"] for record in records] == [100, 100, 101, 101, 102, 102]
    assert run_parts(chosen, loaded, results=tmp_path, console=console) == 0
    assert read_records(tmp_path / "folder" / "two.jsonl") == records
    broken = replace(chosen[0], rounds=((replace(chosen[0].specs[0], budget="2"),),))
    assert run_parts([broken], loaded, results=tmp_path, console=console) == 1
    show_plan([PARTS["perplexity"]], "any")
    assert "perplexity, 1: 26 runs, 106,496 tokens" in capsys.readouterr().out

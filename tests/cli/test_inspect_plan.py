import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lacache.policies.plan_record import plan_record

from lacache.cli.inspect_records import format_heads, groups_record
from lacache.policies import RetrievalHeads
from tests.cache.slow_cache import slow_kept
from tests.cli.conftest import Run
from tests.policies.group_strategies import groups

PLAN = RetrievalHeads(capacity=64, history=(1, (2, 0), (4, 1)), window=0.5, evict_batch=4)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_record(PLAN)))
    return path


@given(data=st.data(), seen=st.integers(1, 120))
@settings(max_examples=30, deadline=None)
def test_what_each_head_holds_is_what_the_slow_twin_holds(data: Any, seen: int) -> None:
    plan = data.draw(groups(4, 2))
    record = groups_record(plan, (2,) * 4, seen, settled=False)
    assert [
        [record["kept"][number] for number in heads] for heads in record["head_to_kept"]
    ] == slow_kept(plan, 4, 2, 0, seen)


def test_table_and_json_tell_the_same(run: Run, plan_file: Path) -> None:
    arguments = ("--layers", 6, "--heads", 2, "--seen", 500, "--plan", plan_file)
    record = json.loads(run("inspect", *arguments, "--json").stdout)
    assert record["num_seen"] == 500
    assert record["mean_cached"] <= record["mean_capacity"] <= 64
    assert record["groups"][0]["heads"] == {"1": [0, 1], "2": [0], "4": [1]}
    table = run("inspect", *arguments).stdout
    assert f"{record['coverage']:,} by some head" in table
    for group in record["groups"]:
        assert str(group["capacity"]) in table


def test_a_picture_by_kv_head(run: Run, plan_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "heads.png"
    result = run(
        *("inspect", "--layers", 6, "--heads", 2, "--seen", 500),
        *("--plan", plan_file, "--plot", path),
    )
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plan_and_options_contradict(run: Run, plan_file: Path) -> None:
    for extra, name in ((("--capacity", 64), "capacity"), (("--policy", "full"), "policy")):
        result = run("inspect", "--layers", 6, "--seen", 9, "--plan", plan_file, *extra)
        assert result.exit_code == 2
        assert f"{name} cannot be given beside --plan" in result.stderr


def test_a_plan_for_other_layers(run: Run, plan_file: Path) -> None:
    result = run("inspect", "--layers", 3, "--heads", 2, "--seen", 9, "--plan", plan_file)
    assert result.exit_code == 2
    assert "layer 4 of a group must be below the number of layers 3" in result.stderr


def test_describe_heads() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (3, 1)]
    assert format_heads(pairs, (2,) * 4) == "0-1, 3.1"
    assert format_heads(pairs[-1:], (2,) * 4) == "3.1"

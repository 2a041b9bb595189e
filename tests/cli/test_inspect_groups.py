import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.cli.inspect_records import format_heads, groups_record
from lacache.policies import parse_policy
from tests.cache.slow_cache import slow_kept
from tests.cli.conftest import Run
from tests.policies.group_strategies import groups
from tests.policies.sized import Sized, bind

HERE = ("--layers", 30, "--heads", 3, "--seen", 3000)
NAMED = ("balanced", "recall", "paper")
POLICY = "retrieval:heads=1+2.0+4.1:window=0.5:evict_batch=4"
SMALL = ("--layers", 6, "--heads", 2, "--seen", 500, "--budget", 64, "--policy", POLICY)


@given(data=st.data(), seen=st.integers(1, 120))
@settings(max_examples=30, deadline=None)
def test_what_each_head_holds_is_what_the_slow_twin_holds(data: Any, seen: int) -> None:
    sized: Sized = (None, data.draw(groups(4, 2)))
    record = groups_record(bind(sized, (2,) * 4), seen, settled=False)
    assert [
        [record["kept"][number] for number in heads] for heads in record["head_to_kept"]
    ] == slow_kept(sized, 4, 2, 0, seen)


def test_table_and_json_agree(run: Run) -> None:
    record = json.loads(run("inspect", *SMALL, "--json").stdout)
    assert record["num_seen"] == 500
    assert record["mean_cached"] <= record["mean_capacity"] <= 64
    assert record["groups"][0]["heads"] == {"1": [0, 1], "2": [0], "4": [1]}
    table = run("inspect", *SMALL).stdout
    assert f"{record['coverage']:,} by some head" in table
    for group in record["groups"]:
        assert str(group["capacity"]) in table


def test_a_picture_by_kv_head(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "heads.png"
    result = run("inspect", *SMALL, "--plot", path)
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_policy_for_other_layers(run: Run) -> None:
    result = run("inspect", *SMALL, "--layers", 3)
    assert result.exit_code == 2
    assert "layer 4 of a group must be below the number of layers 3" in result.stderr


@pytest.mark.parametrize("name", NAMED)
def test_a_named_policy_shows_what_it_keeps(run: Run, name: str) -> None:
    done = run("inspect", "--policy", name, *HERE, "--budget", 256, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    bound = bind((256, parse_policy(name)), (3,) * 30)
    expected = groups_record(bound, 3000, settled=True)
    ours = record.get("head_to_kept") or [[number] * 3 for number in record["layer_to_kept"]]
    assert [[record["kept"][number] for number in heads] for heads in ours] == [
        [expected["kept"][number] for number in heads] for heads in expected["head_to_kept"]
    ]


def test_the_profile_that_is_missing_is_named(run: Run) -> None:
    for name in NAMED:
        done = run("inspect", "--policy", name, *HERE, "--budget", 256)
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[0] == f"{name} at 256"
        assert ("lacache calibrate" in done.stdout) == (name != "paper")


def test_a_window_that_shrinks_shows_both_capacities(run: Run) -> None:
    done = run("inspect", "--policy", "recall", *HERE, "-b", 256)
    assert "256, later 89" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "globl", "-b", 9), "policy='globl' must be one of balanced, recall"),
        (("--policy", "recall"), "no budget was given; try budget=512"),
        (("--policy", "recall", "-b", 3), "budget=3 must be at least 18 tokens"),
        (
            ("--policy", "balanced:heads=3:share=0.1", "-b", 99),
            "heads cannot be given with share=0.1",
        ),
    ],
)
def test_what_does_not_go_together(run: Run, options: tuple[object, ...], message: str) -> None:
    done = run("inspect", *HERE, *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_policy_that_names_heads_needs_their_number(run: Run) -> None:
    common = ("inspect", "--layers", 6, "--seen", 500, "-b", 64, "--policy")
    done = run(*common, POLICY)
    assert done.exit_code == 2
    assert "--heads is not given" in done.stderr
    assert "--heads 2 or more" in done.stderr
    assert run(*common, POLICY, "--heads", 2).exit_code == 0
    done = run(*common, "retrieval:heads=1+4/5.2:evict_batch=4")
    assert "number 2 of layer 5" in done.stderr
    assert run(*common, "retrieval:heads=1+4:evict_batch=4").exit_code == 0


def test_format_heads() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (3, 1)]
    assert format_heads(pairs, (2,) * 4) == "0-1, 3.1"
    assert format_heads(pairs[-1:], (2,) * 4) == "3.1"

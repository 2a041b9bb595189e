import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache import Ladder, Paper
from lacache.cli.inspect_records import ladder_record
from lacache.policies import ModelShape, kept_after
from tests.cli.conftest import Run
from tests.policies.strategies import SizedLadder

TRACES = json.loads((Path(__file__).parents[1] / "policies" / "released_traces.json").read_text())


def inspect_json(run: Run, *arguments: object) -> Any:
    result = run("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_there_are_traces() -> None:
    assert len(TRACES) == 39


@pytest.mark.parametrize("number", range(39))
def test_released_traces_are_reproduced(run: Run, number: int) -> None:
    trace = TRACES[number]
    layers, span, overlap = trace["num_layers"], trace["span"], trace["overlap"]
    policy = Paper(span=span, overlap=overlap, sinks=trace["start_size"])
    capacity = policy.released_capacity(trace["cache_size"], layers)
    for checkpoint in trace["checkpoints"]:
        record = inspect_json(
            run,
            *("--layers", layers, "--budget", capacity),
            *("--policy", policy, "--seen", checkpoint["seen"]),
        )
        assert record["num_seen"] == checkpoint["seen"]
        assert record["kept"] == checkpoint["kept"]
        assert record["layer_to_kept"] == checkpoint["layer_to_kept"]
        assert record["num_cached"] == len(checkpoint["kept"][0])


def test_keys_and_their_order(run: Run) -> None:
    record = inspect_json(run, "--layers", 8, "--policy", "ladder", "-b", 32, "--seen", 100)
    assert list(record) == [
        "num_seen",
        "num_cached",
        "cursor",
        "kept",
        "layer_to_kept",
        "coverage",
        "compaction_due",
    ]


@st.composite
def ladders(draw: st.DrawFn) -> SizedLadder:
    """A ladder that works."""
    layers = draw(st.integers(2, 12))
    span = draw(st.integers(1, layers // 2))
    options = {
        "span": span,
        "overlap": draw(st.integers(0, span - 1)),
        "sinks": draw(st.integers(0, 5)),
        "recent": draw(st.integers(0, 9)),
        "evict_batch": draw(st.integers(1, 9)),
        "geometry": draw(st.sampled_from(["interleaved", "consecutive"])),
        "unit": draw(st.integers(1, 3)),
        "window_layers": tuple(draw(st.sets(st.integers(0, layers - 1), max_size=3))),
    }
    policy = Ladder(**options)
    least = policy.smallest_capacity(ModelShape.of_layers(layers))
    return SizedLadder(policy, layers, least + draw(st.integers(0, 30)))


@given(ladder=ladders(), seen=st.integers(0, 300), settled=st.booleans())
def test_records_equal_the_slow_reference(ladder: SizedLadder, seen: int, settled: bool) -> None:
    kept = kept_after(ladder.schedule(), seen)
    if settled:
        kept.settle()
    record = ladder_record(kept)
    state, expected = ladder.slow(seen, settled=settled)
    assert [record["kept"][number] for number in record["layer_to_kept"]] == expected
    # Distinct, and numbered by the first layer that has them.
    firsts = [record["layer_to_kept"].index(number) for number in range(len(record["kept"]))]
    assert firsts == sorted(firsts)
    assert all(record["kept"].count(tokens) == 1 for tokens in record["kept"])
    assert (record["num_seen"], record["num_cached"], record["cursor"]) == state
    assert record["coverage"] == len({token for tokens in expected for token in tokens})


def test_before_and_after_a_compaction_that_is_due(run: Run) -> None:
    arguments = (
        *("--layers", 8, "--policy", "ladder:span=4:evict_batch=5"),
        *("--budget", 32, "--seen", 32),
    )
    after = inspect_json(run, *arguments)
    before = inspect_json(run, *arguments, "--before-compaction")
    assert before["num_cached"] == 32
    assert before["kept"] == [list(range(32))]
    assert after["num_cached"] < 32
    assert after["compaction_due"]
    assert before["compaction_due"]
    not_due = inspect_json(run, *arguments[:-1], 31)
    assert not not_due["compaction_due"]
    assert not_due == inspect_json(run, *arguments[:-1], 31, "--before-compaction")


def test_span_and_overlap_follow_from_the_layers(run: Run) -> None:
    common = ("--layers", 30, "--budget", 64, "--seen", 500, "--policy")
    given_values = inspect_json(run, *common, "ladder:span=15:overlap=12")
    assert inspect_json(run, *common, "ladder") == given_values


def test_streaming_and_full(run: Run) -> None:
    common = ("--layers", 3, "--seen", 50, "--policy")
    streaming = inspect_json(run, *common, "streaming:evict_batch=2", "--budget", 10)
    assert streaming["kept"] == [[0, 1, 2, 3, 46, 47, 48, 49]]
    assert streaming["layer_to_kept"] == [0, 0, 0]
    assert inspect_json(run, *common, "full")["kept"] == [list(range(50))]


def test_window_layers_have_a_list_of_their_own(run: Run) -> None:
    record = inspect_json(
        run,
        *("--layers", 8, "--budget", 32, "--seen", 200),
        *("--policy", "ladder:span=4:window_layers=1-2+7"),
    )
    window = record["kept"][record["layer_to_kept"][1]]
    assert window[4:] == list(range(window[4], 200))
    same = [layer for layer, n in enumerate(record["layer_to_kept"]) if record["kept"][n] == window]
    assert same == [1, 2, 7]


def test_a_million_tokens(run: Run) -> None:
    record = inspect_json(run, "--layers", 32, "--budget", 4096, "--seen", 1_000_000)
    assert record["num_seen"] == 1_000_000
    assert record["kept"][0][-1] == 999_999


def test_the_table_says_the_same(run: Run) -> None:
    policy = "ladder:span=16:overlap=0:recent=32:evict_batch=1"
    arguments = ("--layers", 32, "--policy", policy, "--budget", 257)
    result = run("inspect", *arguments, "--seen", 1792)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert f"{policy} at 257" in text
    assert "1,792 tokens seen, 256 held by each layer and 472 by some layer" in text
    assert "0-30 by 2" in text
    assert "0-3, 131-387 by 128" in text
    assert "after the compaction that was due" in text


def test_a_plot_is_written(run: Run, tmp_path: Path) -> None:
    arguments = ("--layers", 8, "--policy", "ladder:span=4", "--budget", 32, "--seen", 200)
    result = run("inspect", *arguments, "--json", "--plot", tmp_path / "ladder.png")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_seen"] == 200
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-b 64 --policy ladder:span=8:overlap=8", "overlap=8 must be below span=8; try overlap=4"),
        ("-b 64 --policy ladder:span=4:overlap=9", "overlap=9 must be below span=4"),
        ("-b 64 --policy ladder:span=32", "span=32 must be below the number of layers 32"),
        ("-b 64 --policy ladder:span=40", "span=40 must be below the number of layers 32"),
        ("-b 64 --policy ladder:span=30:overlap=29", "at least one must be freed; try span="),
        ("-b 0", "budget=0 must be at least 1"),
        ("-b -5", "budget=-5 must be at least 1"),
        ("-b 0.5", "budget=0.5 must be a number of tokens, as there is no model"),
        ("-b 7 --policy ladder:span=16:recent=20", "budget=7 must be at least 26 tokens"),
        ("", "no budget was given; try budget=512"),
        ("--policy full -b 9", "budget=9 cannot be given with policy 'full'"),
        ("--policy streaming:span=3 -b 9", "policy 'streaming' has no setting 'span'"),
        ("--policy best -b 9", "policy='best' must be one of balanced, recall"),
        ("-b 64 --policy ladder:geometry=round", "geometry='round' must be one of interleaved"),
        ("-b 64 --policy ladder:unit=0", "unit=0 must be at least 1"),
        ("-b 64 --policy ladder:evict_batch=-1", "evict_batch=-1 must be at least 1"),
        ("-b 64 --policy ladder:window_layers=3-1", "window_layers=3-1 of policy 'ladder' cannot"),
        ("-b 64 --policy ladder:window_layers=30-32", "must be below the number of layers 32"),
        ("-b 64 --layers 1 --policy ladder", "a ladder needs at least 2 layers"),
        ("-b 64 --seen -1", "seen=-1 must be at least 0"),
    ],
)
def test_bad_values_end_in_one_line(run: Run, arguments: str, message: str) -> None:
    result = run("inspect", "--layers", 32, "--seen", 100, *arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_plot_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "ladder.png"
    result = run("inspect", "--layers", 8, "--budget", 32, "--seen", 9, "--plot", target)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1

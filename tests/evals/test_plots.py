import builtins
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.common.records import Record, read_record, write_record
from lacache.errors import InputError, MissingExtraError
from lacache.evals.plots import plot_ladder, plot_memory, plot_perplexity
from lacache.evals.plots.ladder import row_ticks
from lacache.policies import Ladder, kept_after

pytest.importorskip("matplotlib")


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """Red, green and blue [height, width, 3] from 0 to 255."""
    from matplotlib.image import imread

    return (imread(path)[:, :, :3] * 255).round().astype(int)


def share_of(image: np.ndarray[Any, Any], colour: str) -> float:
    """The share of pixels of nearly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((abs(image - wanted).max(axis=2) < 24).mean())


def ladder(policy: Ladder, num_seen: int, num_layers: int = 8, capacity: int = 64) -> Record:
    schedule = policy.schedule(num_layers, capacity)
    kept = kept_after(schedule, num_seen)
    patterns = list(kept.by_pattern)
    return {
        "num_seen": num_seen,
        "kept": list(kept.by_pattern.values()),
        "layer_to_kept": [patterns.index(p) for p in schedule.patterns],
    }


LADDER = Ladder(span=4, overlap=1, evict_batch=1)


def test_a_plot_is_named_as_a_png(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not named so; try ladder\.png"):
        plot_ladder({"num_seen": 1, "kept": [[0]], "layer_to_kept": [0]}, tmp_path / "ladder.txt")
    assert not list(tmp_path.iterdir())


def test_the_ladder_is_drawn_from_its_record_alone(tmp_path: Path) -> None:
    write_record(tmp_path / "ladder.json", ladder(LADDER, 200))
    plot_ladder(read_record(tmp_path / "ladder.json"), tmp_path / "a.png")
    plot_ladder(ladder(LADDER, 200), tmp_path / "b.png")
    plot_ladder(ladder(LADDER, 205), tmp_path / "c.png")
    a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
    assert a.shape == (630, 1800, 3)
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize(("capacity", "num_seen"), [(64, 60), (64, 80), (64, 130), (40, 130)])
def test_what_is_held_takes_up_its_share_of_the_picture(
    tmp_path: Path, capacity: int, num_seen: int
) -> None:
    record = ladder(Ladder(span=4, evict_batch=1), num_seen, capacity=capacity)
    plot_ladder(record, tmp_path / "ladder.png")
    image = pixels(tmp_path / "ladder.png")
    # The field inside of the axes; cells are orange on white, with thin white lines between.
    field = image[100:540, 100:1780]
    held = len(record["kept"][0]) / num_seen
    assert (field[:, :, 2] < 60).mean() == pytest.approx(0.9 * held, rel=0.12)


@pytest.mark.parametrize("num_seen", [1, 65, 5000])
def test_any_length_can_be_drawn(tmp_path: Path, num_seen: int) -> None:
    plot_ladder(ladder(LADDER, num_seen), tmp_path / "ladder.png")
    assert pixels(tmp_path / "ladder.png").std() > 10


def test_perplexity_and_memory_show_a_line_for_each_record(
    tmp_path: Path, records: list[Record]
) -> None:
    for plot in (plot_perplexity, plot_memory):
        plot(records, tmp_path / "all.png")
        plot(records[:1], tmp_path / "one.png")
        everything, one = pixels(tmp_path / "all.png"), pixels(tmp_path / "one.png")
        assert everything.shape[1] == one.shape[1] == 1500
        assert share_of(everything, "#D55E00") > 5e-4
        assert share_of(one, "#D55E00") == 0


def test_a_higher_perplexity_is_drawn_higher(tmp_path: Path, records: list[Record]) -> None:
    """Two flat lines, the orange one above or below the grey one."""

    def middle_row(ours: float) -> float:
        flat = [
            records[0] | {"nll": [2.0] * 299},
            records[2] | {"nll": [ours] * 299},
        ]
        plot_perplexity(flat, tmp_path / "flat.png")
        upper = pixels(tmp_path / "flat.png")[:, 150:]
        rows = np.nonzero(abs(upper - [213, 94, 0]).max(axis=2) < 24)[0]
        return float(np.median(rows))

    assert middle_row(2.2) < middle_row(1.8)


def test_records_that_do_not_fit_are_refused(tmp_path: Path, records: list[Record]) -> None:
    path = tmp_path / "no.png"
    with pytest.raises(InputError, match="has no kept, layer_to_kept"):
        plot_ladder({"num_seen": 3}, path)
    with pytest.raises(InputError, match="num_seen=0 leaves nothing"):
        plot_ladder({"num_seen": 0, "kept": [[]], "layer_to_kept": [0]}, path)
    with pytest.raises(InputError, match="0 runs"):
        plot_memory([], path)
    other = records[0] | {"samples_sha256": "other"}
    with pytest.raises(InputError, match="on different tokens"):
        plot_perplexity([records[1], other], path)
    assert os.listdir(tmp_path) == []


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest),
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'lacache\[plots\]'"):
        plot_ladder(ladder(LADDER, 200), tmp_path / "a.png")


def test_matplotlib_is_loaded_by_plots_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the module must work where the extra is not installed."""
    spec = importlib.util.find_spec("lacache.evals.plots")
    assert spec is not None
    assert spec.loader is not None
    real_import = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.plot_ladder)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=60))
def test_rows_are_named_by_layer_and_head(num_heads: list[int]) -> None:
    by_head = max(num_heads) > 1
    slow = [
        f"{layer}.{head}" if by_head else f"{layer}"
        for layer, heads in enumerate(num_heads)
        for head in range(heads)
    ]
    ticks = row_ticks(num_heads)
    assert 0 in ticks
    assert len(ticks) <= 16
    for row, name in ticks.items():
        assert slow[row] == name
    if len(slow) <= 16:
        assert list(ticks.values()) == slow


def test_heads_that_hold_the_same_are_one_row_of_their_layer(tmp_path: Path) -> None:
    common = {"num_seen": 9, "kept": [[0, 8], [7, 8]]}
    by_head = [[0, 0], [1, 1], [0, 0]]
    plot_ladder({**common, "head_to_kept": by_head}, tmp_path / "heads.png")
    plot_ladder({**common, "layer_to_kept": [0, 1, 0]}, tmp_path / "layers.png")
    assert (pixels(tmp_path / "heads.png") == pixels(tmp_path / "layers.png")).all()
    plot_ladder({**common, "head_to_kept": [[0, 1], [1, 1], [0, 0]]}, tmp_path / "apart.png")
    assert (pixels(tmp_path / "apart.png") != pixels(tmp_path / "layers.png")).any()

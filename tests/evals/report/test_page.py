import re
from pathlib import Path
from typing import Any

import pytest

from lacache.common.records import Record
from lacache.errors import InputError
from lacache.evals.plots.by_bytes import Line, Panel, Point, front, plot_pareto, plot_scores
from lacache.evals.plots.needle import plot_needle
from lacache.evals.plots.positions import PositionLine, plot_positions
from lacache.evals.plots.style import policy_styles
from lacache.evals.report import Run, write_report
from lacache.evals.report.arrange import arrange
from lacache.evals.report.page import page_text
from lacache.evals.report.text import conclusions
from tests.evals.report.made_up import POLICIES, eval_record, ppl_record, study
from tests.evals.test_plots import pixels, share_of

pytest.importorskip("matplotlib")

STREAMING, LADDER = "#0072B2", "#D55E00"


def written(folder: Path, records: list[Record], **options: Any) -> str:
    runs = [Run(record, f"r:{i}") for i, record in enumerate(records)]
    paths = write_report(runs, folder, **options)
    assert sorted(paths) == sorted(folder.iterdir())
    return paths[0].read_text(encoding="utf-8")


def text_of(*records: Record) -> str:
    numbers = arrange([Run(record, f"r:{i}") for i, record in enumerate(records)])
    return page_text(numbers, [[] for _ in numbers.sections])


def test_a_page_shows_every_figure_and_every_table(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    records = [*study(draws=8, tokens=400, budgets=["0.5"]), eval_record(prefill="dense")]
    text = written(tmp_path, records, on_figure=lambda *counts: done.append(counts))
    linked = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert sorted(linked) == sorted(path.name for path in tmp_path.glob("*.png"))
    assert done == [(i, len(linked)) for i in range(1, len(linked) + 1)]
    for kind in ("mean", "scores", "depth", "positions", "pareto"):
        assert any(kind in name for name in linked), kind
    headings = re.findall(r"^### (.+)$", text, flags=re.MULTILINE)
    assert "ruler niah_single_1, 2,000 tokens" in headings
    assert "Perplexity made up, 400 tokens" in headings
    assert "random-ladder, 8 draws" in text
    assert "settings (model, types, measure, prefill, version of the harness), which" in text
    assert "cccccccccccc" in text


def test_a_page_states_bits_beside_bytes() -> None:
    text = text_of(eval_record(), eval_record(kv_dtype="int8", kv_bits=8.5))
    assert "| 1 | tiny (abababab) in float32: answers, chunked prefill | 32 | 1 |" in text
    eight = "tiny (abababab) in float32, keys and values in int8: answers, chunked prefill"
    assert f"| 2 | {eight} | 8.5 | 1 |" in text
    assert f"## 2. {eight}" in text


def test_tables_are_well_formed() -> None:
    policy = {"name": "odd", "setting": "a|b"}
    text = text_of(eval_record(policy), eval_record({"name": "odd"}), *study())
    assert "setting=a\\|b" in text
    widths: set[int] = set()
    for line in text.splitlines():
        if line.startswith("|"):
            widths.add(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(widths) == 1
            widths = set()


def test_many_settings_are_folded_but_streaming_stays_in_sight() -> None:
    ladders = [POLICIES["ladder"] | {"unit": i} for i in range(1, 31)]
    records = [eval_record(ladder, scores=[1.0]) for ladder in ladders]
    text = text_of(*records, eval_record("streaming", scores=[0.0]))
    shown, _, folded = text.partition("### passkey")[2].partition("<details>")
    assert shown.count("| Ladder unit=") == 12
    assert "StreamingLLM |" in shown
    assert folded.startswith("<summary>18 more policies at 25 %</summary>")
    assert folded.count("| Ladder unit=") == 18


def test_bytes_that_are_not_equal_stand_out() -> None:
    base = eval_record("streaming")
    assert "| **× 1.050** |" in text_of(base, eval_record("ladder", bytes_factor=1.05))
    assert "| × 1.010 |" in text_of(base, eval_record("ladder", bytes_factor=1.01))


def test_settings_that_are_left_to_the_policy_are_not_printed() -> None:
    unset = {"name": "ladder", "span": None, "recent": 0.25, "window_layers": [], "unit": 1}
    text = text_of(eval_record("streaming"), eval_record(unset))
    assert "- Ladder: recent=0.25, unit=1\n" in text
    assert "None" not in text
    assert "- Ladder: no settings\n" in text_of(eval_record({"name": "ladder", "span": None}))


def test_a_single_sample_has_no_interval_and_nothing_is_bold() -> None:
    text = text_of(eval_record("streaming", scores=[0.0]), eval_record(scores=[1.0]))
    row = next(line for line in text.splitlines() if "| Ladder |" in line)
    assert row.startswith("| 25 % | Ladder | 1.000 | +1.000 | 0.000 | -1.000 |")
    assert "1 sample," in text
    assert "[" not in conclusions(arrange([Run(eval_record(scores=[1.0]), "r:1")]).sections[0])[0]


def test_an_older_harness_is_noted_in_the_page() -> None:
    text = text_of(eval_record(), eval_record(harness=0), eval_record("tova", harness=0))
    assert "- 1 record was left out, of version 0 of the harness: a newer version" in text
    assert "## 2. tiny (abababab) in float32: answers, chunked prefill, version 0 of the" in text


def test_the_prefill_of_the_full_cache_is_stated() -> None:
    text = text_of(eval_record("full", budget="1.0"), eval_record(prefill="dense"))
    assert "The full cache is from a chunked prefill." in text


def test_a_document_whose_policies_are_in_no_figure_has_a_table(tmp_path: Path) -> None:
    ladders: list[Record] = [{"name": "ladder", "unit": unit} for unit in range(1, 12)]
    worst = ladders.pop()
    page = written(
        tmp_path,
        [
            *(ppl_record(ladder, nll=[1.0, 2.0] * 60, text="one") for ladder in ladders),
            ppl_record(worst, nll=[2.0, 3.0] * 60, text="one"),
            ppl_record(worst, nll=[2.0, 3.0] * 60, text="two"),
        ],
    )
    assert "positions-perplexity-text-one" in page
    assert "positions-perplexity-text-two" not in page
    assert "text=two" in page


def test_positions_are_shown_for_equal_buckets_only() -> None:
    one, two = (ppl_record(name, nll=[1.0] * 600) for name in ("streaming", "ladder"))
    assert "| 0 to 255 | 256 to 511 | 512 to 600 |" in text_of(one, two)
    two["by_position"] = [[0, 601, 2.7]]
    assert "0 to 255" not in text_of(one, two)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_report([Run(eval_record(), "r:1")], tmp_path / "file")


def line(policy: str, *points: tuple[float, float]) -> Line:
    return Line(policy, policy, tuple(Point(*point) for point in points))


def test_scores_have_a_colour_for_each_policy(tmp_path: Path) -> None:
    both = Panel(
        "t", (line("streaming", (1, 0.2), (9, 0.2)), line("ladder", (1, 0.8), (9, 0.8))), 0.9
    )
    one = Panel("t", (line("streaming", (1, 0.2), (9, 0.2)),), None)
    plot_scores([both], "title", tmp_path / "both.png")
    plot_scores([one] * 4, "title", tmp_path / "one.png")
    image = pixels(tmp_path / "both.png")
    assert min(share_of(image, colour) for colour in (STREAMING, LADDER)) > 1e-3
    assert share_of(pixels(tmp_path / "one.png"), LADDER) == 0
    with pytest.raises(InputError, match="0 panels"):
        plot_scores([], "title", tmp_path / "none.png")


def test_a_found_needle_is_blue_and_a_lost_one_orange(tmp_path: Path) -> None:
    places = [(depth / 4, length) for depth in range(5) for length in (10, 20)]
    for score, colour in ((0.0, LADDER), (1.0, STREAMING)):
        panel = dict.fromkeys(places, score)
        plot_needle({"t": panel, "u": panel}, "title", tmp_path / f"{score}.png")
        assert share_of(pixels(tmp_path / f"{score}.png"), colour) > 0.2
    half, whole_panel = dict.fromkeys(places[:5], 1.0), dict.fromkeys(places, 1.0)
    plot_needle({"t": half, "u": whole_panel}, "title", tmp_path / "h.png")
    whole, partly = (share_of(pixels(tmp_path / n), STREAMING) for n in ("1.0.png", "h.png"))
    assert 0.6 * whole < partly < 0.9 * whole
    with pytest.raises(InputError, match="0 scores by depth"):
        plot_needle({"t": {}}, "title", tmp_path / "none.png")


def test_the_end_of_the_trained_context_is_marked_if_the_document_is_longer(tmp_path: Path) -> None:
    lines = [PositionLine("ladder", "Ladder", (2.0,) * 500)]
    for context in (100, 501, None):
        plot_positions(lines, "title", tmp_path / f"{context}.png", trained_context=context)
    marked, unmarked, unknown = (pixels(tmp_path / f"{c}.png") for c in (100, 501, None))
    assert (unmarked == unknown).all()
    assert (marked != unknown).any()
    with pytest.raises(InputError, match="2 different lengths"):
        plot_positions([*lines, PositionLine("full", "Full", (1.0,))], "t", tmp_path / "no.png")


def test_the_front_is_what_nothing_beats() -> None:
    points = [Point(*p) for p in [(3, 1.0), (1, 5.0), (2, 7.0), (2, 4.0), (4, 1.0), (5, 0.5)]]
    for lower, sign in ((True, 1), (False, -1)):
        beaten = {
            p
            for p in points
            for q in points
            if q != p and q.num_bytes <= p.num_bytes and sign * q.value <= sign * p.value
        }
        expected = sorted(set(points) - beaten)
        assert front(points, lower_is_better=lower) == expected


def test_random_draws_are_a_cloud_and_a_far_full_cache_does_not_squeeze(tmp_path: Path) -> None:
    ladder = Line("ladder", "Ladder", (Point(1, 9.0), Point(2, 8.0)))
    cloud = Line("random", "random", tuple(Point(1, 9 + i / 9) for i in range(40)))

    def height(full: float) -> int:
        """Rows of the image that the ladder's line covers."""
        path = tmp_path / "p.png"
        plot_pareto([ladder], [cloud], "t", path, lower_is_better=True, full=full)
        upper = pixels(path)[:640]
        hits = (abs(upper - [213, 94, 0]).max(axis=2) < 24).any(axis=1)
        return int(hits.sum())

    assert height(1e6) > 1.3 * height(16.0) > 40
    with pytest.raises(InputError, match="0 points"):
        plot_pareto([], [], "t", tmp_path / "no.png", lower_is_better=True)


def test_policies_keep_their_looks() -> None:
    styles = policy_styles([("tova", "t"), ("ladder", "L a"), ("ladder", "L b"), ("new", "n")])
    again = policy_styles([("ladder", "L b"), ("tova", "t")])
    assert styles["t"] == again["t"]
    assert styles["L a"] == again["L b"]
    looks = [(style["color"], style["marker"]) for style in styles.values()]
    assert len(set(looks)) == len(looks) == 4

from statistics import fmean

import pytest

from lacache.evals.intervals import mean_of_means
from lacache.evals.report import Run
from lacache.evals.report.arrange import arrange
from lacache.evals.report.by_task import TaskTable, by_task
from lacache.evals.report.page import page_text
from tests.evals.report.made_up import eval_record, ppl_record

ONES, HALF, NONE = [1.0] * 4, [1.0, 0.0, 1.0, 0.0], [0.0] * 4
RECORDS = [
    eval_record(policy, task=task, scores=scores, budget=budget, length=length)
    for task, length, by_policy in (
        ("ruler-vt", 1000, (ONES, HALF, ONES)),
        ("ruler-cwe", 1000, (ONES, NONE, HALF)),
        ("passkey", 1000, (ONES, ONES, NONE)),
        ("passkey", 2000, (ONES, HALF, HALF)),
    )
    for policy, budget, scores in zip(
        ("full", "streaming", "ladder"), ("1.0", "0.25", "0.25"), by_policy, strict=True
    )
]


def tables(*more: object) -> list[TaskTable]:
    report = arrange([Run(record, f"r:{i}") for i, record in enumerate([*RECORDS, *more])])  # type: ignore[arg-type]
    return by_task(report.sections[0], report.tasks)


def test_tasks_of_one_length_stand_side_by_side_with_the_mean_of_ruler() -> None:
    one, _ = tables()
    assert one.title == "Scores at 1,000 tokens"
    assert one.mean_of == "2 RULER tasks"
    assert set(one.columns) == {"passkey", "ruler-vt", "ruler-cwe"}
    assert [row.policy for row in one.rows] == ["Full cache", "Ladder", "StreamingLLM"]
    full, ladder, streaming = one.rows
    assert dict(zip(one.columns, ladder.values, strict=True)) == {
        "passkey": 0.0,
        "ruler-vt": 1.0,
        "ruler-cwe": 0.5,
    }
    assert ladder.mean == mean_of_means([ONES, HALF])
    assert ladder.mean is not None
    assert ladder.against_base is not None
    assert ladder.against_full is not None
    assert (ladder.mean.value, ladder.against_base.value) == (0.75, 3.0)
    assert ladder.against_full.value == 0.75
    assert streaming.against_base is None
    assert full.against_full is None


def test_lengths_of_a_task_stand_side_by_side() -> None:
    _, several = tables()
    assert several.title == "Scores by length"
    assert several.columns == ("passkey, 1,000", "passkey, 2,000")
    assert several.mean_of == "2 columns"
    assert several.rows[1].values == (1.0, 0.5)


def test_a_policy_that_is_not_in_all_tasks_has_no_mean() -> None:
    one, _ = tables(eval_record("tova", task="ruler-vt", scores=ONES))
    tova = one.rows[-1]
    assert tova.policy == "tova"
    assert tova.mean is None
    assert tova.against_base is None
    assert sorted(tova.values, key=str) == [1.0, None, None]


def test_the_page_has_the_tables_and_perplexity_none() -> None:
    records = [*RECORDS, ppl_record("ladder", nll=[1.0] * 300)]
    report = arrange([Run(record, f"r:{i}") for i, record in enumerate(records)])
    text = page_text(report, [[] for _ in report.sections])
    assert "| mean of 2 RULER tasks | of StreamingLLM's | of the full cache's |" in text
    assert text.count("### Scores ") == 2


def test_the_interval_of_a_mean_of_means_draws_within_each_cell() -> None:
    found = mean_of_means([HALF * 5, ONES * 5])
    assert found.value == fmean([0.5, 1.0])
    assert 0.6 < found.low < 0.75 < found.high < 0.9
    # Cells without variance have none together.
    assert mean_of_means([ONES, NONE]) == (0.5, 0.5, 0.5)
    assert mean_of_means([[1.0], [0.0]]).low == pytest.approx(float("-inf"))

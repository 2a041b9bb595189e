"""Sorting records into tables, and the numbers in them."""

import json
import math
from statistics import fmean, median
from typing import Any

import pytest

from lacache.common.records import Record
from lacache.errors import InputError
from lacache.evals.report.arrange import Report, arrange
from lacache.evals.report.figures import choose
from lacache.evals.report.run import Run, budget_label
from lacache.evals.report.tables import MeanRow, Row
from lacache.evals.report.text import conclusions, draw_conclusions
from lacache.evals.runs import HARNESS
from tests.evals.report.made_up import MODEL, POLICIES, eval_record, ppl_record, study


def numbers(*records: Record) -> Report:
    return arrange([Run(record, f"r:{i}") for i, record in enumerate(records, start=1)])


def rows(found: Report, section: int = 0, table: int = 0) -> dict[str, Row]:
    by_budget = found.sections[section].tables[table].by_budget
    return {row.policy: row for rows in by_budget.values() for row in rows}


def means(found: Report, section: int = 0) -> dict[str, MeanRow]:
    return {row.policy: row for row in found.sections[section].means}


OURS, THEIRS = [1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]


def test_a_row_has_the_values_of_the_record_and_of_the_pairs() -> None:
    found = numbers(
        eval_record("full", scores=[1.0] * 4, budget="1.0"),
        eval_record("ladder", scores=OURS, bytes_factor=1.1),
        eval_record("streaming", scores=THEIRS),
    )
    ladder = rows(found)["Ladder"]
    assert (ladder.value, ladder.loss) == (0.75, 0.25)
    assert ladder.against_base is not None
    assert ladder.against_base.value == pytest.approx(0.5)
    assert ladder.loss_against_base is not None
    assert ladder.loss_against_base.value == pytest.approx(-0.5)
    assert ladder.mean_of_base == pytest.approx(1.1)
    assert ladder.mean_of_full == pytest.approx(0.25 * 0.9 * 1.1 / 0.5)
    assert ladder.peak_of_full == pytest.approx(0.25)
    base = rows(found)["StreamingLLM"]
    assert base.against_base is None
    assert base.mean_of_base is None
    full = found.sections[0].tables[0].full
    assert full is not None
    assert full.value == 1


def test_the_best_comes_first_in_each_budget_and_small_budgets_before_large_ones() -> None:
    found = numbers(
        *[
            eval_record(name, scores=[score, score], budget=budget)
            for budget in ("0.5", "0.125")
            for name, score in (("streaming", 0.2), ("ladder", 0.9), ("tova", 0.5))
        ]
    )
    by_budget = found.sections[0].tables[0].by_budget
    assert list(by_budget) == ["0.125", "0.5"]
    for same in by_budget.values():
        assert [row.policy for row in same] == ["Ladder", "tova", "StreamingLLM"]
    found = numbers(ppl_record("streaming", nll=[2.0] * 99), ppl_record("ladder", nll=[1.0] * 99))
    assert list(rows(found)) == ["Ladder", "StreamingLLM"]


@pytest.mark.parametrize(
    "changes",
    [
        {"prefill": "dense"},
        {"model": MODEL | {"weights_sha256": "cd" * 32}},
        {"model": MODEL | {"name": "other"}},
        {"model": MODEL | {"dtype": "bfloat16"}},
    ],
)
def test_other_models_and_prefills_have_sections_of_their_own(changes: Any) -> None:
    found = numbers(
        eval_record("streaming", scores=THEIRS), eval_record("ladder", scores=OURS, **changes)
    )
    assert len(found.sections) == 2
    assert all(row.against_base is None for i in (0, 1) for row in rows(found, i).values())
    assert "2 settings" in found.notes[0]


def test_the_source_of_the_first_token_matters_with_a_dense_prefill_only() -> None:
    def sections(prefill: str) -> int:
        ours = eval_record("ladder", prefill=prefill, first_token="dense")
        return len(numbers(ours, eval_record("streaming", prefill=prefill)).sections)

    assert (sections("chunked"), sections("dense")) == (1, 2)


def test_keys_and_values_in_fewer_bits_have_a_section_of_their_own() -> None:
    """Records from before there was a kv_dtype are of the model's own type."""
    old = [eval_record("full", budget="1.0"), eval_record("streaming"), eval_record("ladder")]
    own = eval_record("tova", kv_dtype=None, kv_bits=32.0)
    eight = [record | {"kv_dtype": "int8", "kv_bits": 8.5} for record in old]
    found = numbers(*old, own, *eight)
    assert [section.kv_bits for section in found.sections] == [32, 8.5]
    assert [section.setting.kv_dtype for section in found.sections] == [None, "int8"]
    assert set(rows(found)) == {"Ladder", "StreamingLLM", "tova"}
    assert set(rows(found, 1)) == {"Ladder", "StreamingLLM"}
    (full,) = {section.tables[0].full for section in found.sections[1:]}
    assert full is not None
    assert full.record == eight[0]
    assert "in float32: answers" in found.sections[0].setting.label
    assert "in float32, keys and values in int8: answers" in found.sections[1].setting.label
    shown = [section["setting"] for section in found.record()["sections"]]
    assert [(s["kv_dtype"], s["kv_bits"]) for s in shown] == [(None, 32), ("int8", 8.5)]


def test_bits_of_an_unknown_type_are_unknown() -> None:
    model = {k: v for k, v in MODEL.items() if k != "dtype"}
    assert numbers(eval_record(model=model)).sections[0].kv_bits is None


def test_other_samples_have_tables_of_their_own_and_a_note() -> None:
    found = numbers(
        eval_record("streaming", scores=THEIRS),
        eval_record("ladder", scores=OURS, samples="other ones"),
    )
    tables = found.sections[0].tables
    assert [len(table.runs) for table in tables] == [1, 1]
    assert len({table.label for table in tables}) == 2
    assert any("2 different sets of samples" in note for note in found.notes)


def test_samples_of_several_seeds_are_pooled() -> None:
    records = [
        eval_record(name, scores=scores, seed=seed, bytes_factor=factor)
        for seed, factor in ((1, 1.0), (0, 1.2))
        for name, scores in (("ladder", [1.0, float(seed)]), ("streaming", [0.0, 1.0]))
    ]
    found = numbers(*records)
    (table,) = found.sections[0].tables
    assert (table.cell.seeds, table.cell.count) == ((0, 1), 4)
    ladder = rows(found)["Ladder"]
    assert ladder.value == pytest.approx(fmean([1, 0, 1, 1]))
    assert ladder.against_base is not None
    assert ladder.against_base.value == pytest.approx(0.25)
    assert ladder.mean_bytes == pytest.approx(fmean(r["mean_bytes"] for r in records))
    assert found.notes == []


def test_policies_with_other_seeds_are_not_compared() -> None:
    found = numbers(
        *[eval_record("ladder", scores=OURS, seed=seed) for seed in (0, 1, 2)],
        *[eval_record("streaming", scores=THEIRS, seed=seed) for seed in (0, 4)],
    )
    labels = [table.label for table in found.sections[0].tables]
    assert labels == ["passkey, 1,000 tokens, seeds 0 to 2", "passkey, 1,000 tokens, seeds 0, 4"]
    assert "2 different sets of samples, 12 of seeds 0 to 2" in found.notes[0]


def test_a_seed_that_some_policies_do_not_have_yet_is_left_out() -> None:
    records = [
        eval_record(name, scores=scores, seed=seed, prefill="dense", budget=budget)
        for seed in (0, 1, 2)
        for budget in ("0.25", "0.5")
        for name, scores in (("ladder", OURS), ("streaming", THEIRS))
    ]
    full = [eval_record("full", scores=[1.0] * 4, seed=seed, budget="1.0") for seed in range(3)]
    for record in records[8:]:
        record["environment"] = record["environment"] | {"time": "2027-01-01T00:00:00+00:00"}
    # The run that was to come last.
    unfinished = numbers(*records[:-1], *full)
    (table,) = unfinished.sections[0].tables
    assert table.cell.seeds == (0, 1)
    assert table.full is not None
    assert table.full.cell == table.cell
    assert [len(found) for found in table.by_budget.values()] == [2, 2]
    assert any("seed 2 of passkey at length 1,000 is left out" in n for n in unfinished.notes)
    (table,) = numbers(*records, *full).sections[0].tables
    assert table.cell.seeds == (0, 1, 2)


def test_the_full_cache_is_pooled_to_the_seeds_of_every_prefill() -> None:
    records = [
        eval_record(name, scores=[1.0, 0.0], seed=seed, prefill=prefill)
        for prefill, seeds in (("chunked", (0, 1, 2)), ("dense", (0, 1)))
        for seed in seeds
        for name in ("ladder", "streaming")
    ]
    full = [eval_record("full", scores=[1.0, 1.0], seed=s, budget="1.0") for s in range(3)]
    sections = numbers(*records, *full).sections
    found = [
        (table.cell.seeds, table.full and len(table.full.scores))
        for s in sections
        for table in s.tables
    ]
    assert found == [((0, 1, 2), 6), ((0, 1), 4)]


def test_samples_that_may_be_the_same_are_not_pooled() -> None:
    """Of one seed, or of other counts, which begin with the same samples."""
    found = numbers(eval_record(samples="old"), eval_record(samples="new"), eval_record(seed=1))
    assert [table.cell.seeds for table in found.sections[0].tables] == [(0,), (0,), (1,)]
    found = numbers(eval_record(scores=[1.0], seed=0), eval_record(scores=[1.0, 0.0], seed=1))
    assert len(found.sections[0].tables) == 2


def test_the_full_cache_serves_every_prefill_on_the_same_samples() -> None:
    full = eval_record("full", scores=[1.0] * 4, budget="1.0")
    found = numbers(full, eval_record(prefill="dense"), eval_record(), eval_record(length=50))
    chunked, dense = found.sections
    assert [table.full is None for table in chunked.tables] == [True, False]
    assert dense.tables[0].full is not None
    assert dense.tables[0].full == chunked.tables[1].full


def test_a_full_cache_alone_has_a_table() -> None:
    found = numbers(eval_record("full", budget="1.0"))
    assert found.sections[0].tables[0].full is not None
    assert found.sections[0].tables[0].by_budget == {}


def test_repeats_are_shown_once_and_different_figures_noted() -> None:
    older = eval_record(scores=[1.0, 0.0])
    newer = eval_record(scores=[1.0, 1.0])
    newer["environment"] = newer["environment"] | {"time": "2027-01-01T00:00:00+00:00"}
    found = numbers(newer, older)
    assert rows(found)["Ladder"].value == 1
    assert "r:2 and r:1 are runs of one configuration with different figures" in found.notes[0]
    assert numbers(older, older).notes == [
        "1 records repeat a run with the same figure, and are shown once."
    ]


def test_a_policy_with_other_inputs_is_another_policy() -> None:
    preset: Record = {"name": "recall"}
    found = numbers(
        eval_record(preset, scores=OURS, policy_inputs_sha256="1" * 64),
        eval_record(preset, scores=THEIRS, policy_inputs_sha256="2" * 64),
        eval_record("streaming", scores=THEIRS, policy_inputs_sha256=""),
    )
    labels = {"recall inputs=11111111", "recall inputs=22222222", "StreamingLLM"}
    assert set(rows(found)) == labels
    assert not found.notes
    one = numbers(eval_record(preset, scores=OURS, policy_inputs_sha256="1" * 64))
    assert set(rows(one)) == {"recall"}


def test_versions_of_the_harness_are_never_pooled() -> None:
    new, old = HARNESS, HARNESS - 1
    found = numbers(
        *(eval_record(scores=OURS, seed=seed, harness=old) for seed in (0, 1, 2)),
        eval_record(scores=THEIRS, seed=0, harness=new),
        eval_record("streaming", scores=THEIRS, seed=0, harness=old),
        eval_record("full", scores=OURS, seed=0, harness=old),
    )
    first, second = found.sections
    assert (first.setting.harness, second.setting.harness) == (new, old)
    ladder = rows(found)["Ladder"]
    assert ladder.value == fmean(THEIRS)
    # It is compared with neither StreamingLLM nor the full cache of another version.
    assert (ladder.against_base, ladder.mean_of_full) == (None, None)
    assert first.tables[0].cell.seeds == (0,)
    assert list(rows(found, 1)) == ["StreamingLLM"]
    assert second.tables[0].full is not None
    assert "3 records were left out, of version" in found.notes[0]


def test_damaged_pairs_are_refused() -> None:
    short = ppl_record("ladder", nll=[1.0] * 9)
    damaged = short | {"nll": [1.0] * 8, "policy": POLICIES["streaming"]}
    with pytest.raises(InputError, match="r:2: 8 losses, and r:1 has 9"):
        numbers(short, damaged)


def drawn(seed: int, value: float, **more: Any) -> Record:
    return eval_record({"name": "random-ladder", "seed": seed}, scores=[value, value], **more)


def test_random_draws_make_one_row() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.9]
    found = numbers(
        eval_record("ladder", scores=[0.4, 0.4]),
        eval_record("streaming", scores=[0.2, 0.2]),
        *[drawn(i, value) for i, value in enumerate(values)],
    )
    row = rows(found)["random-ladder"]
    assert (row.draws, row.value) == (5, median(values))
    assert 0.1 <= row.low < row.high <= 0.9
    assert draw_conclusions(found.sections[0].tables[0]) == [
        "25 %: Ladder beats 3 of 5 draws of random-ladder and ties with 1."
    ]
    few = numbers(*[drawn(i, 0.5) for i in range(3)])
    assert len(rows(few)) == 3


def test_the_ladder_beats_draws_of_higher_perplexity() -> None:
    draws = [
        ppl_record({"name": "random-ladder", "seed": i}, nll=[1.0 + i / 10] * 20) for i in range(6)
    ]
    found = numbers(ppl_record("ladder", nll=[1.25] * 20), *draws)
    assert draw_conclusions(found.sections[0].tables[0]) == [
        "256 tokens: Ladder beats 3 of 6 draws of random-ladder."
    ]


def test_draws_are_compared_with_the_ladder_of_their_settings() -> None:
    like, other = ({"name": "ladder", "span": span, "unit": 1} for span in (5, 9))
    draws = [
        eval_record({"name": "random-ladder", "seed": i, "span": 5, "unit": 1}, scores=[0.5])
        for i in range(4)
    ]
    found = numbers(eval_record(like, scores=[0.4]), eval_record(other, scores=[0.9]), *draws)
    assert draw_conclusions(found.sections[0].tables[0]) == [
        "25 %: Ladder span=5 beats 0 of 4 draws of random-ladder."
    ]


def test_means_are_over_tables_and_ratios_over_those_with_signal() -> None:
    scores = {
        "a": ([1.0] * 4, OURS, THEIRS),
        "b": ([1.0, 1.0, 0.0, 1.0], [1.0] * 4, [1.0, 1.0, 0.0, 0.0]),
        "without signal": ([0.0] * 4, [0.0, 0.0, 0.0, 1.0], [0.0] * 4),
    }
    records = [
        eval_record(name, scores=values, task=task)
        for task, three in scores.items()
        for name, values in zip(("full", "ladder", "streaming"), three, strict=True)
    ]
    row = means(numbers(*records))["Ladder"]
    assert (row.tables, row.tables_in_all, row.signal_tables, row.paired_tables) == (3, 3, 2, 2)
    assert row.mean == pytest.approx(fmean([0.75, 1.0, 0.25]))
    assert row.signal_mean == pytest.approx(fmean([0.75, 1.0]))
    assert row.against_base is not None
    assert row.against_base.value == pytest.approx((0.75 + 1.0) / (0.25 + 0.5))


def test_without_a_full_cache_no_signal_is_known() -> None:
    found = numbers(eval_record("ladder"), eval_record("streaming"))
    assert means(found)["Ladder"].signal_tables == 0
    assert means(found)["Ladder"].against_base is None


@pytest.mark.parametrize(
    ("scores", "has_signal"),
    [
        ([1.0, 0.0], True),
        ([0.0] * 20, False),
        ([1.0] + [0.0] * 19, False),
        ([1.0] * 9 + [0.0] * 11, False),
    ],
)
def test_signal_is_at_least_half(scores: list[float], has_signal: bool) -> None:
    assert Run(eval_record("full", scores=scores), "").has_signal == has_signal


def test_a_mean_over_fewer_tables_is_not_called_best() -> None:
    found = numbers(
        *[eval_record(name, scores=[0.5], task=task) for task in "ab" for name in ("streaming",)],
        eval_record("ladder", scores=[1.0], task="a"),
    )
    assert not means(found)["Ladder"].is_complete
    assert [row.policy for row in found.sections[0].means] == ["StreamingLLM", "Ladder"]
    assert conclusions(found.sections[0]) == [
        "25 %, over 2 tables: StreamingLLM is best with a mean score of 0.500."
    ]


def test_ties_are_named() -> None:
    both = [eval_record("ladder", scores=[1.0]), eval_record("streaming", scores=[1.0])]
    assert (
        "all 2 policies are equal with a mean score of 1.000"
        in conclusions(numbers(*both).sections[0])[0]
    )
    found = numbers(*both, eval_record("tova", scores=[0.0]))
    assert "Ladder and StreamingLLM are best" in conclusions(found.sections[0])[0].replace(
        "StreamingLLM and Ladder", "Ladder and StreamingLLM"
    )


def test_the_ratio_of_perplexities_is_in_the_conclusion() -> None:
    found = numbers(
        ppl_record("full", nll=[1.0] * 99),
        ppl_record("ladder", nll=[2.0] * 99),
        ppl_record("streaming", nll=[2.5] * 99),
    )
    ladder = rows(found)["Ladder"]
    assert ladder.against_base is not None
    assert ladder.against_base.value == pytest.approx(math.exp(-0.5))
    assert (
        "× 0.607 [0.607, 0.607] of StreamingLLM's; full cache 2.718"
        in conclusions(found.sections[0])[0]
    )


def test_far_tokens_are_compared_apart() -> None:
    # Every other token followed the same one 300 tokens ago, beyond the capacity of 256.
    distances = [300, 256] * 60
    found = numbers(
        ppl_record("ladder", nll=[1.0, 2.0] * 60, last_seen=distances, capacity=256),
        ppl_record("streaming", nll=[1.5, 2.0] * 60, last_seen=distances, capacity=256),
    )
    far = rows(found)["Ladder"].far_against_base
    assert far is not None
    assert far.value == pytest.approx(math.exp(-0.5))
    few = numbers(
        ppl_record("ladder", nll=[1.0] * 120, last_seen=[0] * 80 + [300] * 40, capacity=256),
        ppl_record("streaming", nll=[1.5] * 120, last_seen=[0] * 80 + [300] * 40, capacity=256),
    )
    assert rows(few)["Ladder"].far_against_base is None


@pytest.mark.parametrize(("factor", "remark"), [(1.01, ""), (1.1, " at × 1.100 of its mean bytes")])
def test_a_comparison_at_other_bytes_has_a_remark(factor: float, remark: str) -> None:
    answers = numbers(
        eval_record("full", scores=[1.0] * 2),
        eval_record("streaming", scores=[1.0, 0.0]),
        eval_record("ladder", scores=[1.0] * 2, bytes_factor=factor),
    )
    assert conclusions(answers.sections[0])[0].endswith(f"of StreamingLLM's mean{remark}.")
    text = numbers(
        ppl_record("ladder", nll=[2.0] * 99, bytes_factor=factor),
        ppl_record("streaming", nll=[2.5] * 99),
    )
    assert conclusions(text.sections[0])[0].endswith(f"of StreamingLLM's{remark}.")


def test_streaming_with_like_settings_is_the_one_to_compare_with() -> None:
    found = numbers(
        eval_record("ladder", scores=OURS),
        eval_record(POLICIES["streaming"] | {"evict_batch": 0.5}, scores=[1.0] * 4),
        eval_record("streaming", scores=THEIRS),
    )
    against = rows(found)["Ladder"].against_base
    assert against is not None
    assert against.value == pytest.approx(0.5)


def test_labels_show_what_differs() -> None:
    ladder = POLICIES["ladder"]
    found = numbers(
        eval_record(ladder), eval_record(ladder | {"span": 9}), eval_record({"name": "knorm"})
    )
    assert set(rows(found)) == {"Ladder span=15", "Ladder span=9", "knorm"}
    found = numbers(eval_record(ladder | {"recent": None}), eval_record(ladder | {"recent": 0.5}))
    assert set(rows(found)) == {"Ladder", "Ladder recent=0.5"}
    tasks = [{"name": "ruler", "task": "vt"}, {"name": "ruler", "task": "cwe"}, "passkey"]
    found = numbers(*[eval_record(task=task) for task in tasks])
    assert set(found.tasks.values()) == {"ruler task=vt", "ruler task=cwe", "passkey"}


def test_budgets_in_words() -> None:
    labels = [budget_label(budget) for budget in ("0.125", "256", "64MiB", "")]
    assert labels == ["12.5 %", "256 tokens", "64MiB", "no budget"]


def test_figures_show_the_best_settings_of_each_policy() -> None:
    found = numbers(*study(variants=12))
    tables = found.sections[0].tables
    everything = choose(tables, found.policies, most=99)
    assert (len(everything.keys), everything.note) == (14, "")
    few = choose(tables, found.policies)
    names = [json.loads(key)["name"] for key in few.keys]
    assert names[0] == "streaming"
    assert sorted(names) == ["ladder", "streaming", "tova"]
    ladders = [key for key in everything.keys if json.loads(key)["name"] == "ladder"]
    # The same 20 samples everywhere, so plain means compare.
    means_of = {
        key: fmean(run.value for table in tables for run in table.runs if run.policy_key == key)
        for key in ladders
    }
    assert few.keys[names.index("ladder")] == max(means_of, key=lambda key: means_of[key])
    assert "11 others are in the tables alone" in few.note


def test_numbers_are_plain_json() -> None:
    found = numbers(
        *study(),
        *[
            eval_record(name, task="rare", scores=s, prefill="dense")
            for name, s in (("full", [1.0, 1.0]), ("ladder", [1.0, 1.0]), ("streaming", [1.0, 0.0]))
        ],
    )
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    section = next(s for s in record["sections"] if s["setting"]["prefill"] == "dense")
    ladder = next(row for row in section["means"] if row["name"] == "ladder")
    assert ladder["against_base"] == [2.0, 1.0, None]
    table = section["tables"][0]
    assert table["label"] == "rare, 1,000 tokens"
    assert {row["policy"]: row["value"] for row in table["rows"]} == {
        "Ladder": 1.0,
        "StreamingLLM": 0.5,
    }

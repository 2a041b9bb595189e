import math
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.runs import Protocol
from lacache.evals.tasks.document_needles import DocumentNeedles
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tuning.result import (
    FULL,
    STREAMING,
    TOLERANCE,
    Found,
    Settings,
    recommend,
    tuning_record,
    verdict,
)
from lacache.evals.tuning.search import GUESS, Search
from lacache.evals.tuning.split import FEWEST_EXCERPTS
from lacache.policies import Policy
from tests.evals.tuning.made_up import EXCERPTS, LENGTH, PARTS, World, ladders

POLICIES = ladders(20)
GOOD_TEXT, GOOD_RECALL, GOOD_BOTH = POLICIES[3], POLICIES[7], POLICIES[11]
TRUTH: dict[Policy, tuple[float, float]] = {
    STREAMING: (2.95, 15.0),
    GOOD_TEXT: (2.8, 16.0),
    GOOD_RECALL: (3.3, 2.0),
    GOOD_BOTH: (2.9, 6.0),
}


def search(world: World, minutes: float, policies: list[Policy] = POLICIES) -> Found:
    return Search(Settings(16, LENGTH, minutes), PARTS, policies, world.measure).run()


@pytest.fixture(scope="module")
def found() -> Found:
    """After ten minutes. Not to be changed."""
    return search(World(TRUTH), 10)


def test_what_is_best_is_found_and_recommended(found: Found) -> None:
    assert set(found.front) == {GOOD_TEXT, GOOD_RECALL, GOOD_BOTH}
    assert found.recommended["text"] == GOOD_TEXT
    assert found.recommended["recall"] == GOOD_RECALL
    assert found.recommended["both"] == GOOD_BOTH
    assert STREAMING in found.finalists
    assert set(found.held_out) == {STREAMING, FULL, *found.front}
    assert not found.untried
    assert not found.failed


def test_the_better_half_reads_more_again_and_again(found: Found) -> None:
    read = {policy: len(excerpts) for policy, excerpts in found.compared.items()}
    assert set(read) == {STREAMING, *POLICIES}
    assert len(found.finalists) == 6
    assert len({read[m] for m in found.finalists}) == 1
    assert max(read.values()) == read[STREAMING] > 5
    assert sum(count == 1 for count in read.values()) == 10
    counts = {len(excerpts) for excerpts in found.held_out.values()}
    assert len(counts) == 1
    assert counts.pop() > 3


def test_every_policy_gets_the_same_tokens_and_needles_and_no_part_is_used_for_the_other() -> None:
    world = World(TRUTH)
    found = search(world, 4)
    by_method: dict[Policy, list[object]] = {}
    for spec in world.asked:
        by_method.setdefault(spec.policy, []).append((spec.task, spec.seed))
    for policy, asked in by_method.items():
        assert len(set(asked)) == len(asked), policy
    assert set(by_method[GOOD_BOTH]) <= set(by_method[STREAMING])
    (_, border), (start, _) = (part.tokens for part in PARTS)
    for spec in world.asked:
        if isinstance(spec.task, Perplexity):
            assert spec.task.start + LENGTH <= border or spec.task.start >= start
            held_out = spec.task.start >= start
        else:
            assert isinstance(spec.task, DocumentNeedles)
            assert (spec.task.start, spec.task.stop) == PARTS[spec.seed].characters
            held_out = spec.seed == 1
        if held_out:
            assert spec.policy in found.held_out
        if spec.policy == FULL:
            assert spec.budget == "1.0"
        else:
            assert spec.budget == "16"
        assert spec.protocol == Protocol()


@settings(max_examples=30)
@given(
    minutes=st.floats(0.05, 8),
    count=st.integers(1, 20),
    slow=st.floats(0.2, 8.0),
)
def test_time_is_kept(minutes: float, count: int, slow: float) -> None:
    times: list[float] = []

    def seconds(policy: Policy) -> float:
        times.append(slow if policy in POLICIES[:5] else 1.0)
        return times[-1]

    world = World(TRUTH, seconds=seconds)
    found = None
    with suppress(ConfigError):
        found = search(world, minutes, POLICIES[:count])
    # No run begins that would end after the time if it took as long as those of its kind.
    assert sum(times[:-1]) <= 60 * minutes
    if found is None:
        # Not even three policies, and held out the full cache besides, would have had the time
        # that the first round left.
        slowest = 2 * max(slow, 1.0)
        assert (2 * 3 + 2 * (3 + 1) + 2 * 5) * slowest > 60 * minutes * 0.95
        return
    assert found.seconds == pytest.approx(sum(times))
    assert len(found.compared) >= min(3, count + 1)
    assert set(found.held_out) >= {STREAMING, FULL, found.recommended["both"]}
    assert set(found.compared) | set(found.untried) == {STREAMING, *POLICIES[:count]}
    for part, policies in ((found.compared, found.finalists), (found.held_out, found.held_out)):
        counts = {len(part[policy]) for policy in policies}
        assert len(counts) == 1
        assert counts.pop() >= FEWEST_EXCERPTS


def test_a_run_that_takes_longer_than_ever_ends_the_search_but_not_its_advice() -> None:
    calls = 0

    def seconds(policy: Policy) -> float:
        nonlocal calls
        calls += 1
        return 30.0 if calls > 190 else 1.0

    world = World(TRUTH, seconds=seconds)
    found = search(world, 4)
    assert len(world.asked) <= 193
    assert found.seconds <= 4 * 60 + 30
    assert {len(found.compared[m]) for m in found.finalists} != {1}
    assert len({len(of) for of in found.held_out.values()}) == 1


def test_what_is_not_possible_is_reported_after_a_first_excerpt() -> None:
    world = World(TRUTH, seconds=lambda policy: 10.0)
    # One run, and 14 excerpts of two runs.
    with pytest.raises(ConfigError, match=r"minutes=2 are too little time.*try --minutes 5\.1"):
        search(world, 2)
    assert [spec.policy for spec in world.asked] == [FULL, STREAMING, STREAMING]
    # Where one more run would end after the time, it is told before it.
    slow = World(TRUTH, seconds=lambda policy: 40.0)
    with pytest.raises(ConfigError, match="minutes=1 are too little time"):
        search(slow, 1)
    assert len(slow.asked) == 1


def test_more_time_reads_more() -> None:
    found = [search(World(TRUTH), minutes) for minutes in (1, 3, 6)]
    assert [bool(f.untried) for f in found] == [True, False, False]
    read = [sum(map(len, f.compared.values())) for f in found]
    assert read == sorted(set(read))
    held_out = [len(f.held_out[STREAMING]) for f in found]
    assert held_out == sorted(held_out)


def test_too_little_time_says_how_much_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"minutes=0\.1 are too.*try --minutes (0\.\d)") as told:
        search(World(TRUTH), 0.1)
    assert "with 3 policies" in str(told.value)
    with pytest.raises(ConfigError, match=r"try --minutes 0\.6") as told:
        search(World(TRUTH), 0.4)
    found = search(World(TRUTH), 0.6)
    assert len(found.compared) == 3
    assert len(found.untried) == 18


def test_the_text_ends_a_search_too() -> None:
    parts = tuple(
        replace(part, tokens=(part.tokens[0], part.tokens[0] + 2 * LENGTH)) for part in PARTS
    )
    world = World(TRUTH)
    found = Search(Settings(16, LENGTH, 1000), (parts[0], parts[1]), POLICIES, world.measure).run()
    assert {len(found.compared[policy]) for policy in found.finalists} == {2}
    assert {len(excerpts) for excerpts in found.held_out.values()} == {2}
    everything = search(World(TRUTH), 1000)
    assert len(everything.compared[STREAMING]) == EXCERPTS
    assert len(everything.held_out[STREAMING]) == EXCERPTS


def test_the_same_records_give_the_same_search() -> None:
    assert search(World(TRUTH), 2) == search(World(TRUTH), 2)


def test_a_candidate_that_fails_is_reported_and_left_out() -> None:
    found = search(World(TRUTH, failing={GOOD_TEXT}), 3)
    assert list(found.failed) == [GOOD_TEXT]
    assert "it broke" in found.failed[GOOD_TEXT]
    assert GOOD_TEXT not in found.compared
    assert GOOD_TEXT not in found.untried
    assert found.recommended["text"] == GOOD_BOTH


@pytest.mark.parametrize("policy", [FULL, STREAMING])
def test_without_a_reference_there_is_no_search(policy: Policy) -> None:
    with pytest.raises(InputError, match="could not be measured: it broke"):
        search(World(TRUTH, failing={policy}), 10)


def test_candidates_that_all_fail_leave_nothing_to_compare() -> None:
    with pytest.raises(ConfigError, match=r"nothing is left to compare .*it broke"):
        search(World(TRUTH, failing=set(POLICIES)), 10)
    with pytest.raises(ConfigError, match="nothing is left"):
        search(World(TRUTH), 10, [])


def test_a_model_that_finds_no_needles_is_refused_at_once() -> None:
    world = World(TRUTH, full=(2.9, 25.0))
    with pytest.raises(ModelError, match=r"costs 2\d\..*blind guess 16\.0.*try a shorter --length"):
        search(world, 10)
    assert len(world.asked) == 1


def test_a_blind_guess_costs_what_numbers_drawn_by_chance_cost() -> None:
    assert pytest.approx(math.log(10_000_000 - 1_000_000)) == GUESS


POINT = st.tuples(st.sampled_from([9.9, 10.0, 10.02, 10.5]), st.sampled_from([1.0, 2.0, 3.0]))


@given(st.lists(POINT, min_size=1, max_size=8), st.data())
def test_recommendations_are_the_least_by_their_rule(
    points: list[tuple[float, float]], data: st.DataObject
) -> None:
    by_method = dict(zip([STREAMING, *POLICIES], points, strict=False))
    ratios = {policy: data.draw(st.sampled_from([0.9, TOLERANCE, 1.1])) for policy in by_method}
    ratios[STREAMING] = 1.0
    best = recommend(by_method, ratios)
    assert by_method[best["text"]] == min(points)
    assert by_method[best["recall"]][::-1] == min(point[::-1] for point in points)
    allowed = [point for policy, point in by_method.items() if ratios[policy] <= TOLERANCE]
    assert by_method[best["both"]][::-1] == min(point[::-1] for point in allowed)
    assert ratios[best["both"]] <= TOLERANCE


def test_a_perplexity_that_is_clearly_higher_is_not_for_both() -> None:
    worse, unclear = POLICIES[0], POLICIES[1]
    truth = {STREAMING: (2.9, 15.0), worse: (2.95, 2.0), unclear: (2.901, 4.0)}
    found = search(World(truth), 3, [worse, unclear])
    assert found.recommended["recall"] == worse
    assert found.recommended["both"] == unclear


@pytest.mark.parametrize(
    ("capacity", "length", "minutes", "told"),
    [
        (0, 64, 1, "capacity=0"),
        (64, 64, 1, "length=64 must be above the capacity 64.*try --length 256"),
        (16, 64, 0, "minutes=0"),
        (16, 64, math.nan, "minutes=nan"),
        (16, 64, math.inf, "minutes=inf"),
    ],
)
def test_settings_that_cannot_be(capacity: int, length: int, minutes: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Settings(capacity, length, minutes)


def test_the_record_separates_both_halves(found: Found) -> None:
    record = tuning_record(found, Settings(16, LENGTH, 10), PARTS, budget="16", model="made up")
    rows = {row["policy"]: row for row in record["policies"]}
    assert len(rows) == 22
    streaming, full, both = rows["streaming"], rows["full"], rows["ladder:unit=12"]
    assert record["recommended"]["both"] == "ladder:unit=12"
    assert full["compared"] is None
    assert full["on_front"] == {"compared": False, "held_out": False}
    assert rows["ladder:unit=2"]["held_out"] is None
    assert streaming["held_out_against"]["ratio_interval"] == [1.0, 1.0]
    assert verdict(both["held_out_against"]) == {"perplexity": "lower", "loss": "lower"}
    assert verdict(rows["ladder:unit=8"]["held_out_against"]) == {
        "perplexity": "higher",
        "loss": "lower",
    }
    assert verdict(streaming["held_out_against"]) == {
        "perplexity": "not clear",
        "loss": "not clear",
    }
    assert both["held_out"]["perplexity"] == pytest.approx(math.exp(2.9), rel=0.1)
    assert both["held_out_against"]["ratio"] == pytest.approx(math.exp(-0.05), rel=0.01)
    assert both["held_out_against"]["loss"] == pytest.approx(-9.0, abs=0.2)
    assert both["held_out"]["perplexity"] != both["compared"]["perplexity"]
    assert both["on_front"] == {"compared": True, "held_out": True}

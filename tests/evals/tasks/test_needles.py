from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.errors import ConfigError, InputError
from lacache.evals.tasks.needles import MultiTurn, Needle
from lacache.evals.tasks.passkey import Passkey
from lacache.evals.tasks.registry import TASKS, parse_task
from lacache.evals.tasks.task import Question, Sample, Task
from tests.engine.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ALL: list[Task] = [Passkey(), Needle(), MultiTurn(), MultiTurn(needles=2)]


def num_tokens(sample: Sample) -> int:
    texts = [sample.context, *(q.text for q in sample.questions)]
    read = sum(len(TOKENIZER(text, add_special_tokens=False).input_ids) for text in texts)
    return read + sum(q.max_new_tokens for q in sample.questions)


@pytest.mark.parametrize("task", ALL)
@pytest.mark.parametrize("length", [1400, 3001])
def test_prompts_fit_and_hold_the_answers(task: Task, length: int) -> None:
    samples = task.samples(TOKENIZER, length=length, count=3, seed=1)
    assert len(samples) == 3
    for sample in samples:
        # One sentence of filler would be too much.
        assert length - 25 <= num_tokens(sample) <= length
        for question in sample.questions:
            (answer,) = question.answers
            assert answer in sample.context
            assert answer not in question.text
            # An answer must fit, one token for each digit and one for the space.
            assert question.max_new_tokens >= len(answer) + 1
            assert task.score(f" {answer}. And so on", question) == 1.0
            assert task.score(f" {answer[:-1]}", question) == 0.0
            assert task.score("", question) == 0.0


@pytest.mark.parametrize("task", ALL)
def test_samples_follow_from_their_seed_alone(task: Task) -> None:
    def make(**changes: Any) -> list[Sample]:
        return task.samples(TOKENIZER, **({"length": 1500, "count": 2, "seed": 1} | changes))

    assert make() == make()
    assert make()[0] != make(seed=2)[0]
    assert make()[0] != make()[1]


def test_a_passkey_comes_at_any_depth() -> None:
    samples = Passkey().samples(TOKENIZER, length=3000, count=20, seed=0)
    depths = [sample.info["depth"] for sample in samples]
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    for sample in samples:
        place = sample.context.index(f"The pass key is {sample.questions[0].answers[0]}")
        assert place / len(sample.context) == pytest.approx(sample.info["depth"], abs=0.1)
        assert sample.questions[0].text == "What is the pass key? The pass key is"


def test_needles_are_spread_evenly() -> None:
    samples = Needle().samples(TOKENIZER, length=4000, count=5, seed=0)
    assert [sample.info["depth"] for sample in samples] == [0, 0.25, 0.5, 0.75, 1]
    for sample in samples:
        place = sample.context.index("One of the special magic numbers")
        assert place / len(sample.context) == pytest.approx(sample.info["depth"], abs=0.06)
        assert sample.info["length"] == 4000
    (single,) = Needle().samples(TOKENIZER, length=4000, count=1, seed=0)
    assert single.info["depth"] == 0.5


def test_several_needles_have_questions_in_the_order_of_their_depths() -> None:
    (sample,) = MultiTurn(needles=4).samples(TOKENIZER, length=4000, count=1, seed=0)
    assert sorted(sample.info["depths"]) == [0.125, 0.375, 0.625, 0.875]
    for question, depth in zip(sample.questions, sample.info["depths"], strict=True):
        place = sample.context.index(question.answers[0])
        assert place / len(sample.context) == pytest.approx(depth, abs=0.06)


def test_a_haystack_may_be_a_text(tmp_path: Any) -> None:
    path = tmp_path / "hay.txt"
    path.write_text("\n".join(f"This is\nstraw number {n}." for n in range(300)))
    (sample,) = Needle(haystack=str(path)).samples(TOKENIZER, length=2000, count=1, seed=0)
    assert "This is straw number 7" in sample.context or "straw number 1" in sample.context
    assert "grass" not in sample.context
    with pytest.raises(InputError, match="is neither a file nor one of"):
        Needle(haystack="no/such.txt").samples(TOKENIZER, length=2000, count=1, seed=0)


@pytest.mark.parametrize("task", ALL)
def test_too_short_a_length_is_refused(task: Task) -> None:
    with pytest.raises(
        InputError, match=f"length=100 is too short for task {task.name}"
    ) as refused:
        task.samples(TOKENIZER, length=100, count=1, seed=0)
    remedy = int(str(refused.value).rpartition("=")[2])
    assert task.samples(TOKENIZER, length=remedy, count=1, seed=0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="needles=1 must be at least 2"):
        MultiTurn(needles=1)
    with pytest.raises(ConfigError, match="needles=99 must be at most"):
        MultiTurn(needles=99)
    with pytest.raises(ConfigError, match="task 'x' must be one of passkey"):
        parse_task("x")


def test_tasks_are_made_by_name() -> None:
    assert parse_task("multiturn:needles=3") == MultiTurn(needles=3)
    assert parse_task("ppl:start=5").name == "ppl"
    for name in ("passkey", "needle", "multiturn"):
        assert TASKS[name]().name == name


@pytest.mark.parametrize("name", TASKS)
@given(before=st.text(), answers=st.lists(st.text(min_size=1), min_size=1), after=st.text())
def test_more_text_keeps_a_right_answer_right(
    name: str, before: str, answers: list[str], after: str
) -> None:
    task = TASKS[name]()
    if not task.stays_right:
        assert name.startswith("longbench-")
        return
    right = before + "".join(answers)
    question = Question("?", tuple(answers), 9)
    if task.score(right, question) == 1.0:
        assert task.score(right + after, question) == 1.0

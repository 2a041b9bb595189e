import pytest

from lacache.errors import InputError
from lacache.evals.tasks.registry import parse_task
from lacache.evals.tasks.task import Sample, Task, count_tokens
from tests.engine.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def samples(length: int = 900, count: int = 5, seed: int = 3) -> list[Sample]:
    task = parse_task("passkey-grid")
    assert isinstance(task, Task)
    return task.samples(TOKENIZER, length=length, count=count, seed=seed)


def test_keys_lie_at_even_depths() -> None:
    found = samples()
    for i, sample in enumerate(found):
        assert sample.info["depth"] == pytest.approx(i / 4)
        key = sample.questions[0].answers[0]
        assert 1 <= int(key) <= 99_999
        where = sample.context.index(f"The pass key is {key}.") / len(sample.context)
        assert where == pytest.approx(i / 4, abs=0.25)
        assert sample.context.count(key) == 2
    assert samples(count=1)[0].info["depth"] == 0.5


def test_prompts_fill_their_length() -> None:
    for length in (700, 1500):
        for sample in samples(length=length):
            question = sample.questions[0]
            tokens = count_tokens(TOKENIZER, sample.context, question.text)
            assert length - 40 <= tokens + question.max_new_tokens <= length
    with pytest.raises(InputError, match="length=100 is too short for task passkey-grid"):
        samples(length=100)


def test_a_seed_is_a_key() -> None:
    def keys(seed: int) -> set[str]:
        return {sample.questions[0].answers[0] for sample in samples(seed=seed)}

    assert keys(3) == keys(3)
    assert len(keys(3) | keys(4) | keys(5)) == 3


def test_an_answer_is_right_if_it_contains_the_key() -> None:
    task = parse_task("passkey-grid")
    assert isinstance(task, Task)
    question = samples()[0].questions[0]
    assert task.score(f" {question.answers[0]}. And", question) == 1
    assert task.score("12 34", question) == 0

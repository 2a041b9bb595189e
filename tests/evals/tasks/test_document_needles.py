import re
from itertools import pairwise
from pathlib import Path

import pytest

from lacache.errors import ConfigError, InputError
from lacache.evals.tasks.document_needles import DocumentNeedles
from lacache.evals.tasks.task import Sample, count_tokens
from tests.engine.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LENGTH = 1500
HALF = "".join(f"Sentence {i} of the first half. " for i in range(100))
TEXT = HALF + "".join(f"def line_{i}(): return {i}\n" for i in range(120))
NEEDLE = re.compile(r" ?One of the special magic numbers for (\w+) is: (\d{7})\. ")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def samples(task: DocumentNeedles, count: int = 2, seed: int = 0) -> list[Sample]:
    return task.samples(TOKENIZER, length=LENGTH, count=count, seed=seed)


def test_every_question_asks_for_a_needle_that_is_there(file: str) -> None:
    for sample in samples(DocumentNeedles(file), 4):
        hidden = dict(NEEDLE.findall(sample.context))
        assert len(hidden) == len(sample.questions) == 3
        for question in sample.questions:
            (word,) = (word for word in hidden if f"for {word} " in question.text)
            assert question.answers == (hidden[word],)
            assert DocumentNeedles(file).score(f" {hidden[word]}.", question) == 1.0
            assert DocumentNeedles(file).score(" 123", question) == 0.0
        texts = [sample.context, *(question.text for question in sample.questions)]
        answers = sum(question.max_new_tokens for question in sample.questions)
        assert LENGTH - 20 <= count_tokens(TOKENIZER, *texts) + answers <= LENGTH


def test_only_that_part_of_the_text_is_read_word_for_word(file: str) -> None:
    parts = ((0, len(HALF)), (len(HALF), None))
    for start, stop in parts:
        for sample in samples(DocumentNeedles(file, start, stop), 4):
            read = NEEDLE.sub("", sample.context.partition("\n")[2])
            part = TEXT[start:stop]
            assert read in part + part


def test_needles_stand_between_sentences_or_lines(file: str) -> None:
    for start, stop, ends in ((0, len(HALF), ". "), (len(HALF), None, "\n")):
        for sample in samples(DocumentNeedles(file, start, stop), 3):
            context = sample.context.partition("\n")[2]
            for found in NEEDLE.finditer(context):
                before = NEEDLE.sub("", context[: found.start()])
                assert not before or before.endswith((ends, ends.strip() or "\n"))


def test_samples_go_on_by_number_and_cover_the_depths(file: str) -> None:
    many = samples(DocumentNeedles(file), 5)
    assert samples(DocumentNeedles(file, number=3), 2) == many[3:]
    assert samples(DocumentNeedles(file), 5) == many
    assert samples(DocumentNeedles(file), 5, seed=1) != many
    depths = sorted(depth for sample in many for depth in sample.info["depths"])
    assert len(set(depths)) == 15
    assert depths[0] < 0.1
    assert depths[-1] > 0.9
    assert max(b - a for a, b in pairwise(depths)) < 0.16
    for sample in many:
        places = {
            word: found.start() / len(sample.context)
            for found in NEEDLE.finditer(sample.context)
            for word in [found[1]]
        }
        for question, depth in zip(sample.questions, sample.info["depths"], strict=True):
            (place,) = (at for word, at in places.items() if f"for {word} " in question.text)
            assert place == pytest.approx(depth, abs=0.15)


def test_what_cannot_be_is_refused(file: str) -> None:
    with pytest.raises(InputError, match="do not fill length=1500"):
        samples(DocumentNeedles(file, 0, 400))
    with pytest.raises(InputError, match="nothing from character 90,000"):
        samples(DocumentNeedles(file, 90_000))
    with pytest.raises(InputError, match="too short for task document-needles"):
        DocumentNeedles(file).samples(TOKENIZER, length=300, count=1, seed=0)
    for settings in ({"needles": 0}, {"needles": 99}, {"start": 5, "stop": 5}, {"number": -1}):
        with pytest.raises(ConfigError):
            DocumentNeedles(file, **settings)

import json
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from lacache.errors import ConfigError, InputError
from lacache.evals.tasks.lm_eval_files import lm_eval_file
from lacache.evals.tasks.longbench import (
    DATASETS,
    LONGBENCH,
    cut_middle,
    load_examples,
    load_prompt,
)
from lacache.evals.tasks.registry import TASKS
from lacache.evals.tasks.task import Question, count_tokens
from tests.engine.tiny import tiny_tokenizer

# What a right answer looks like, where it is not any text; made up, in LongBench's format.
ANSWERS = {
    "trec": ["Animal"],
    "lsht": ["体育"],
    "passage_count": ["7"],
    "passage_retrieval_en": ["Paragraph 3"],
    "passage_retrieval_zh": ["段落3"],
    "multifieldqa_zh": ["一座小桥"],
    "dureader": ["一座小桥"],
    "vcsum": ["会议讨论小桥"],
    "lcc": ["    return bridge(3)"],
    "repobench-p": ["    return bridge(3)"],
}
CLASSES = {"trec": ["Animal", "Person", "Person name"], "lsht": ["体育", "军事"]}
# The ends of the original's prompts whose white space lm-eval has changed: from its
# config/dataset2prompt.json.
ENDINGS = {
    "triviaqa": "{context}\n\n{input}",
    "samsum": "{context}\n\n{input}",
    "passage_count": "\n\nThe final answer is: ",
    "passage_retrieval_en": "\n\nThe answer is: ",
    "lcc": "{context}Next line of code:\n",
    "repobench-p": "{context}{input}Next line of code:\n",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file for each data set, with four examples."""
    folder = tmp_path_factory.mktemp("longbench")
    for dataset in DATASETS:
        lines = [
            json.dumps(
                {
                    "input": f"Who built bridge {i}?",
                    "context": f"Row {i} of {dataset}. " + "The bridge is old. 桥。 " * 20 * i,
                    "answers": ANSWERS.get(dataset, [f"Ann Bell the {i}th", "Ann"]),
                    "length": 100,
                    "dataset": dataset,
                    "language": "en",
                    "all_classes": CLASSES.get(dataset),
                    "_id": f"{i:032x}",
                },
                ensure_ascii=False,
            )
            for i in range(4)
        ]
        (folder / f"{dataset}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def test_there_are_twenty_one() -> None:
    assert len(LONGBENCH) == 21
    for dataset in DATASETS:
        task = LONGBENCH[f"longbench-{dataset}"]
        assert (task.name, task.dataset) == (f"longbench-{dataset}", dataset)
        assert TASKS[task.name] is task


@pytest.mark.parametrize("dataset", DATASETS)
def test_prompts_are_lm_evals_with_the_originals_endings(
    dataset: str, tokenizer: Any, folder: str
) -> None:
    task = LONGBENCH[f"longbench-{dataset}"](folder=folder)
    samples = task.samples(tokenizer, length=20_000, count=4, seed=0)
    assert sorted(sample.info["example"] for sample in samples) == [0, 1, 2, 3]
    raw = lm_eval_file(f"longbench/{dataset}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(raw.replace("!function", ""))
    template = Environment(keep_trailing_newline=True).from_string(config["doc_to_text"])
    for sample in samples:
        example = load_examples(dataset, folder)[sample.info["example"]]
        (question,) = sample.questions
        rendered = template.render(context=example["context"], question=example["input"])
        prompt = sample.context + question.text
        assert prompt.split() == rendered.split()
        if dataset in ENDINGS:
            end = ENDINGS[dataset].format(context=example["context"], input=example["input"])
            assert prompt.endswith(end)
            assert prompt != rendered
        else:
            assert prompt == rendered
        assert question.answers == tuple(example["answers"])
        assert question.max_new_tokens == config["generation_kwargs"]["max_gen_toks"]
        assert sample.info["cut_tokens"] == 0


@pytest.mark.parametrize("dataset", DATASETS)
def test_long_contexts_lose_their_middle(dataset: str, tokenizer: Any, folder: str) -> None:
    task = LONGBENCH[f"longbench-{dataset}"](folder=folder, max_new_tokens=10)
    short = max(
        count_tokens(tokenizer, sample.questions[0].text)
        for sample in task.samples(tokenizer, length=20_000, count=4, seed=0)
    )
    length = 2 * short + 1000
    samples = task.samples(tokenizer, length=length, count=4, seed=0)
    assert samples == task.samples(tokenizer, length=length, count=4, seed=0)
    assert max(sample.info["cut_tokens"] for sample in samples) > 0
    for sample in samples:
        (question,) = sample.questions
        tokens = count_tokens(tokenizer, sample.context, question.text)
        assert tokens <= length - 10
        if sample.info["cut_tokens"]:
            assert tokens > length - 20
            context = load_examples(dataset, folder)[sample.info["example"]]["context"]
            assert sample.context.endswith(context[-100:])
            assert f"Row {sample.info['example']} of" in sample.context


@given(
    context=st.text("abcd ", max_size=60),
    question=st.text("abcd ", min_size=1, max_size=20),
    room=st.integers(1, 90),
)
def test_cut_agrees_with_the_originals(context: str, question: str, room: int) -> None:
    tokenizer = tiny_tokenizer()
    cut = cut_middle(tokenizer, context, question, room=room)
    # As in the original's pred.py, on the joined prompt.
    ids = tokenizer(context + question).input_ids
    half = room // 2
    if len(ids) <= room:
        assert cut == context
    elif len(question) < half:
        assert cut is not None
        assert cut + question == tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])
    elif cut is not None:
        assert context.startswith(cut)
    else:
        assert len(question) >= room or room == 1


@given(
    context=st.text(max_size=80),
    question=st.text(max_size=10),
    room=st.integers(0, 90),
)
def test_what_is_cut_fits(context: str, question: str, room: int) -> None:
    tokenizer = tiny_tokenizer()
    cut = cut_middle(tokenizer, context, question, room=room)
    if cut is not None:
        assert count_tokens(tokenizer, cut, question) <= room


@pytest.mark.parametrize("dataset", DATASETS)
def test_right_answers_score_one_and_others_less(dataset: str, folder: str) -> None:
    task = LONGBENCH[f"longbench-{dataset}"](folder=folder)
    right = ANSWERS.get(dataset, ["Ann Bell the third", "Ann"])
    question = Question("?", tuple(right), 32)
    assert task.score(right[0], question) == pytest.approx(1.0)
    assert task.score(right[-1], question) == pytest.approx(1.0)
    assert task.score("", question) == 0.0
    # Letters may agree by chance where code is compared.
    wrong = task.score("xyz 99 军事", question)
    assert wrong < 0.4 if "code" in load_prompt(dataset).metric else wrong == 0.0


def score(dataset: str, folder: str, prediction: str, *answers: str) -> float:
    return LONGBENCH[f"longbench-{dataset}"](folder=folder).score(
        prediction, Question("?", answers, 32)
    )


def test_metrics_by_hand(folder: str) -> None:
    # Without "the": precision 1/2, recall 1.
    assert score("qasper", folder, "the cat, sat", "Cat") == pytest.approx(2 / 3)
    assert score("qasper", folder, "cat", "dog", "a cat") == 1.0
    # jieba cuts the answer into 一座 and 小桥: precision 1, recall 1/2.
    assert score("multifieldqa_zh", folder, "小桥", "一座小桥") == pytest.approx(2 / 3)
    # The longest common subsequence is 2 of 3 words on both sides.
    assert score("gov_report", folder, "a b c", "a x c") == pytest.approx(2 / 3)
    # "Person" is passed over as part of "Person name"; of two other classes each counts half.
    assert score("trec", folder, "Person name", "Person name") == 1.0
    assert score("trec", folder, "Animal or Person", "Person") == 0.5
    assert score("passage_count", folder, "7 or 8", "7") == 0.5
    assert score("passage_retrieval_en", folder, "Paragraph 3, 3 or 5", "Paragraph 3") == (
        pytest.approx(2 / 3)
    )
    assert score("lcc", folder, "\n# a comment\nx = 1\ny = 2", "x = 1") == 1.0
    assert score("lcc", folder, "x = 12", "x = 1") == pytest.approx(0.91)


def test_only_the_first_line_counts_in_few_shot_tasks(folder: str) -> None:
    few_shot = {dataset for dataset in DATASETS if load_prompt(dataset).first_line}
    assert few_shot == {"trec", "triviaqa", "samsum", "lsht"}
    assert score("triviaqa", folder, "\nAnn Bell\nPassage: more", "Ann Bell") == 1.0
    assert score("hotpotqa", folder, "\nAnn Bell\nPassage: more", "Ann Bell") < 1.0


def test_other_seeds_take_other_examples(tokenizer: Any, folder: str) -> None:
    task = LONGBENCH["longbench-qasper"](folder=folder)
    orders = {
        tuple(
            sample.info["example"]
            for sample in task.samples(tokenizer, length=20_000, count=2, seed=seed)
        )
        for seed in range(8)
    }
    assert len(orders) > 2


def test_errors_name_the_remedy(tokenizer: Any, folder: str, tmp_path: Path) -> None:
    make = LONGBENCH["longbench-qasper"]
    with pytest.raises(ConfigError, match="max_new_tokens"):
        make(max_new_tokens=0)
    with pytest.raises(InputError, match="holds 4; try a smaller count"):
        make(folder=folder).samples(tokenizer, length=20_000, count=5, seed=0)
    with pytest.raises(InputError, match="holds 0; try a greater length"):
        make(folder=folder).samples(tokenizer, length=300, count=1, seed=0)
    with pytest.raises(InputError, match=r"qasper\.jsonl cannot be read.*data\.zip"):
        make(folder=str(tmp_path)).samples(tokenizer, length=300, count=1, seed=0)
    # The tests forbid the hub.
    with pytest.raises(InputError, match=r"from the hub.*folder=FOLDER"):
        make().samples(tokenizer, length=300, count=1, seed=0)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("", "has no examples"),
        ("\n\n", "has no examples"),
        ("{", "line 1 .* is not JSON"),
        ("[1]", "line 1 .* must have input"),
        ('{"input": "", "context": "", "answers": []}', "line 1 .* must have input"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, rule: str) -> None:
    (tmp_path / "qasper.jsonl").write_text(content)
    with pytest.raises(InputError, match=rule):
        load_examples("qasper", str(tmp_path))


def test_the_hub_has_an_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.write(Path(folder) / "qasper.jsonl", "data/qasper.jsonl")

    def download(repository: str, file: str, *, repo_type: str) -> str:
        assert (repository, file, repo_type) == ("THUDM/LongBench", "data.zip", "dataset")
        return str(archive)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    load_examples.cache_clear()
    found = load_examples("qasper", None)
    load_examples.cache_clear()
    assert found == load_examples("qasper", folder)

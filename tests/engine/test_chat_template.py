from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import tokenization_utils_base

from lacache.engine.conversation import ChatTemplate
from lacache.errors import ModelError
from tests.engine.tiny import CHATML, END, tiny_tokenizer

LLAMA3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim"
    " + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
# No system role, a name of its own for the model, an end mark that is no special token.
GEMMA = (
    "{{ '<|endoftext|>' }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else 'user' %}"
    "{{ '<start>' + role + '\n' + m['content'] | trim + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
# Only user turns are marked, and an answer ends with a special token.
MISTRAL = (
    "{{ '<|endoftext|>' }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL}

WORDS = st.text("thea éñ\n?", min_size=1, max_size=12).map(str.strip).filter(bool)


def whole(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The whole conversation, rendered and read at once."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


@pytest.mark.parametrize("name", TEMPLATES)
@given(turns=st.lists(st.tuples(WORDS, WORDS), max_size=3), last=WORDS)
def test_turns_one_by_one_equal_the_whole(
    name: str, turns: list[tuple[str, str]], last: str
) -> None:
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    template = ChatTemplate(tokenizer)
    messages: list[dict[str, str]] = []
    ids: list[int] = []
    for question, answer in [*turns, (last, "")]:
        ids += template.following(question) if ids else template.first(question)
        messages.append({"role": "user", "content": question})
        assert tokenizer.decode(ids) == tokenizer.decode(whole(tokenizer, messages))
        if name == "chatml":
            assert ids == whole(tokenizer, messages)
        ids += tokenizer(answer, add_special_tokens=False).input_ids
        messages.append({"role": "assistant", "content": answer})


def test_the_system_prompt_is_in_the_first_turn_alone() -> None:
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(tokenizer, "Be brief.")
    assert tokenizer.decode(template.first("hi")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "brief" not in tokenizer.decode(template.following("hi"))
    assert "helpful" not in tokenizer.decode(template.following("hi"))


@pytest.mark.parametrize(
    ("name", "system", "pinned"),
    [
        ("chatml", "Be brief.", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"),
        (
            "chatml",
            None,
            "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\n",
        ),
        ("llama3", "Be brief.", "<|im_start|>system\n\nBe brief.<|im_end|><|im_start|>user\n\n"),
        ("gemma", None, "<|endoftext|><start>user\n"),
        ("mistral", None, "<|endoftext|>[INST] "),
    ],
)
def test_all_before_the_first_word_is_pinned(name: str, system: str | None, pinned: str) -> None:
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    template = ChatTemplate(tokenizer, system)
    assert tokenizer.decode(template.first("hello")[: template.num_pinned]) == pinned


@pytest.mark.parametrize(
    ("name", "ends"), [("chatml", {END}), ("llama3", {END}), ("gemma", set()), ("mistral", {END})]
)
def test_the_end_mark_is_found(name: str, ends: set[int]) -> None:
    assert ChatTemplate(tiny_tokenizer(TEMPLATES[name])).eos_token_ids == ends


def test_a_long_message_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", warnings.append)
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(tokenizer)
    assert len(template.first("a" * 600)) > tokenizer.model_max_length
    assert not warnings
    tokenizer("a" * 600)
    assert warnings


def test_no_template_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no chat template.*lacache generate"):
        ChatTemplate(tiny_tokenizer(None))


def test_a_refused_system_prompt_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"System role not supported.*leave it out"):
        ChatTemplate(tiny_tokenizer(GEMMA), "Be brief.")


def test_a_template_that_changes_answers_is_refused() -> None:
    shouting = CHATML.replace("message['content']", "message['content'] | upper")
    with pytest.raises(ModelError, match="the chat template changes replies"):
        ChatTemplate(tiny_tokenizer(shouting))

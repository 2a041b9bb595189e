"""The same properties with the real model, its tokenizer and its chat template."""

from typing import Any

import pytest
import torch

from lacache import Engine, LaCache, Ladder, stream
from lacache.engine.conversation import ChatTemplate, Conversation
from lacache.engine.detokenizer import Detokenizer, find_eos_token_ids
from lacache.models import load_model
from lacache.models.decoder import cache_argument

pytestmark = pytest.mark.slow

TURNS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("And of Italy? Größe: 1234 \n\n yes", "Rome, naïvely.\n\nIt has 2,748,109 people."),
    ("  Thanks!", ""),
]


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model(dtype="float32", progress=False)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_turns_one_by_one_equal_the_whole(loaded: Any, system: str | None) -> None:
    tokenizer = loaded.tokenizer
    template = ChatTemplate(tokenizer, system)
    messages = [] if system is None else [{"role": "system", "content": system}]
    ids: list[int] = []
    for question, answer in TURNS:
        ids += template.following(question) if ids else template.first(question)
        messages.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ids == tokenizer(text, add_special_tokens=False).input_ids
        ids += tokenizer(answer, add_special_tokens=False).input_ids
        messages.append({"role": "assistant", "content": answer})


def test_the_stream_equals_generate(loaded: Any) -> None:
    config = (48, Ladder(span=15, overlap=12, recent=16, evict_batch=6))
    ids = loaded.tokenizer("The history of the city begins " * 12, return_tensors="pt").input_ids
    cache = LaCache(loaded.model, *config)
    output = loaded.model.generate(
        ids,
        **cache_argument(loaded.model, cache),
        max_new_tokens=60,
        do_sample=False,
        eos_token_id=None,
    )
    ours = list(stream(loaded.model, ids, LaCache(loaded.model, *config), max_new_tokens=60))
    assert ours == output[0, ids.shape[1] :].tolist()


def test_a_conversation_ends_its_turns(loaded: Any) -> None:
    template = ChatTemplate(loaded.tokenizer)
    engine = Engine(loaded.model, 256, f"balanced:sinks={template.num_pinned}:evict_batch=32")
    ends = find_eos_token_ids(loaded.model, loaded.tokenizer)
    conversation = Conversation(engine.open, template, eos_token_ids=ends)
    text = Detokenizer(loaded.tokenizer)
    reply = list(conversation.reply(TURNS[0][0], max_new_tokens=100))
    assert len(reply) < 100
    assert "Paris" in "".join(map(text.push, reply)) + text.flush()


def test_a_long_random_text_streams_as_it_decodes(loaded: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 49152, (2000,), generator=generator).tolist()
    text = Detokenizer(loaded.tokenizer)
    streamed = "".join(map(text.push, tokens)) + text.flush()
    whole = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    assert streamed.replace("\ufffd", "") == whole.replace("\ufffd", "")

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from lacache import Engine, Full, LaCache, Ladder
from lacache.engine.cache_stream import CacheGenerator, stream
from lacache.engine.conversation import ChatTemplate, Conversation
from tests.engine.tiny import END, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER, "the system")
MESSAGES = ["the first", "the second é", "the third"]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture
def read(model: Any) -> Iterator[list[int]]:
    """Every token that the model was given, in order."""
    tokens: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        tokens.extend(kwargs["input_ids"][0].tolist())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    yield tokens
    hook.remove()


CONFIG = (100, Ladder(span=2, overlap=1, sinks=TEMPLATE.num_pinned, evict_batch=8))


@pytest.fixture(params=["engine", "cache"])
def start(request: pytest.FixtureRequest, model: Any) -> Callable[..., Conversation]:
    """Makes conversations over either kind of text."""

    def make(**options: Any) -> Conversation:
        if request.param == "engine":
            # Its private model has the hooks that the model has now.
            return Conversation(Engine(model, *CONFIG).open, TEMPLATE, **options)
        return Conversation(
            lambda: CacheGenerator(model, LaCache(model, *CONFIG)), TEMPLATE, **options
        )

    return make


def test_each_turn_reads_its_own_tokens_and_together_they_are_the_conversation(
    start: Callable[..., Conversation], read: list[int]
) -> None:
    conversation = start()
    expected: list[int] = []
    for message in MESSAGES:
        before = len(read)
        turn = TEMPLATE.following(message) if expected else TEMPLATE.first(message)
        reply = list(conversation.reply(message, max_new_tokens=20))
        assert len(reply) == 20
        expected += turn + reply
        assert len(read) - before <= len(turn) + 20
    # The last token of the last reply is read with the turn after it.
    assert read == expected[:-1]
    assert conversation.report().num_seen == len(expected) - 1


def test_a_reply_that_ends_itself_equals_rendering_the_whole(
    start: Callable[..., Conversation], read: list[int]
) -> None:
    """The model's end mark is not read twice: the template writes its own."""
    free = list(start().reply(MESSAGES[0], max_new_tokens=20))
    end = free[8]
    stop = free.index(end)
    read.clear()
    conversation = start(eos_token_ids=frozenset({end}))
    assert list(conversation.reply(MESSAGES[0])) == free[:stop]
    next(conversation.reply(MESSAGES[1]))
    assert read == TEMPLATE.first(MESSAGES[0]) + free[:stop] + TEMPLATE.following(MESSAGES[1])
    assert TEMPLATE.following(MESSAGES[1])[0] == END


def test_a_reply_stopped_by_the_caller_goes_on_from_what_was_said(
    start: Callable[..., Conversation], read: list[int]
) -> None:
    conversation = start()
    said = list(islice(conversation.reply(MESSAGES[0]), 7))
    next(conversation.reply(MESSAGES[1]))
    assert read == TEMPLATE.first(MESSAGES[0]) + said + TEMPLATE.following(MESSAGES[1])


def test_replies_equal_one_stream_over_the_whole_conversation(model: Any) -> None:
    conversation = Conversation(
        lambda: CacheGenerator(model, LaCache(model, policy=Full())), TEMPLATE
    )
    text: list[int] = []
    for message in MESSAGES:
        text += TEMPLATE.following(message) if text else TEMPLATE.first(message)
        reply = list(conversation.reply(message, max_new_tokens=10))
        cache = LaCache(model, policy=Full())
        whole = stream(model, model.dummy_inputs["input_ids"].new_tensor([text]), cache)
        assert reply == list(islice(whole, 10))
        text += reply


def test_the_system_prompt_stays_however_long_it_gets(model: Any) -> None:
    cache = LaCache(model, *CONFIG)
    conversation = Conversation(lambda: CacheGenerator(model, cache), TEMPLATE)
    for number in range(12):
        list(conversation.reply(f"the message {number}", max_new_tokens=15))
    report = conversation.report()
    assert report.num_seen > 400
    assert report.num_cached <= 100
    pinned = list(range(TEMPLATE.num_pinned))
    for layer in range(5):
        assert cache.kept_tokens(layer)[: TEMPLATE.num_pinned] == pinned


def test_reset_starts_over(start: Callable[..., Conversation]) -> None:
    conversation = start()
    first = list(conversation.reply(MESSAGES[0], max_new_tokens=10))
    list(conversation.reply(MESSAGES[1], max_new_tokens=10))
    conversation.reset()
    assert conversation.report().num_seen == 0
    assert list(conversation.reply(MESSAGES[0], max_new_tokens=10)) == first

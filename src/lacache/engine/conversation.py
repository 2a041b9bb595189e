"""Conversations without end: each turn is rendered by the chat template, and prefilled once."""

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any, final

from jinja2 import TemplateError

from lacache.cache.report import CacheReport
from lacache.engine.generator import TextGenerator
from lacache.errors import ModelError

_QUESTION = "first-question"
_REPLY = "first-answer"


@final
class ChatTemplate:
    """Renders a turn without the turns before it.

    A template renders whole conversations. The tokens of a turn are taken from a short made-up
    conversation, after its first reply; so they never depend on earlier turns, and cost the same
    at any turn. A template that rewrites earlier turns, for example to remove their reasoning, has
    no effect on them here, since they are prefilled already.

    Args:
        tokenizer: a tokenizer of transformers, with a chat template.
        system: the system prompt; None takes that of the template, if it has one.

    Raises:
        ModelError: there is no chat template, or it refuses such a conversation.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "the model has no chat template, so the format of a chat is unknown; use "
                "`lacache generate`, or a model that is tuned for chat"
            )
        self._tokenizer = tokenizer
        self._system = [] if system is None else [{"role": "system", "content": system}]
        one, other = self.first("1"), self.first("x")
        same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        self.num_pinned = len(list(same))
        """Tokens before the first word of the user: the system prompt and its special tokens."""
        special = set(self.following("1")[:1]) & set(tokenizer.all_special_ids)
        self.eos_token_ids = frozenset(special)
        """The special token that ends a reply, if the template has one."""

    def first(self, message: str) -> list[int]:
        """Return the tokens of the system prompt and the first message, up to the reply."""
        return self._tokens(self._render([*self._system, _turn("user", message)]))

    def following(self, message: str) -> list[int]:
        """Return the tokens from the end of a reply, its end token included, up to the next."""
        made_up = [_turn("user", _QUESTION), _turn("assistant", _REPLY), _turn("user", message)]
        _, found, added = self._render(made_up).partition(_REPLY)
        if not found:
            raise ModelError(
                "the chat template changes replies, so the tokens of a turn are unknown; use "
                "`lacache generate`"
            )
        return self._tokens(added)

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ModelError(
                f"the chat template refuses the conversation ({error}); if it takes no system "
                "prompt, leave it out"
            ) from error
        return text

    def _tokens(self, text: str) -> list[int]:
        # The template contains the special tokens; a long prompt needs no warning here.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


@final
class Conversation:
    """Turns of a user and a model in one sequence; no turn is ever prefilled again.

    Args:
        new_generator: opens a new sequence, such as `lambda: engine.open(sampling)`. Its policy
            should have `template.num_pinned` sinks, so that the system prompt is never evicted.
        template: renders turns.
        eos_token_ids: tokens that end a reply, besides those of the template.
    """

    def __init__(
        self,
        new_generator: Callable[[], TextGenerator],
        template: ChatTemplate,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._new_generator = new_generator
        self._generator = new_generator()
        self._template = template
        self._eos_token_ids = eos_token_ids | template.eos_token_ids
        self._started = False

    def reply(
        self,
        message: str,
        *,
        max_new_tokens: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """Prefill a message, and yield the tokens of the reply without the one that ends it.

        The caller may stop after any token; the next message then follows the yielded tokens.

        Args:
            message: the user's message.
            max_new_tokens: most tokens to yield; None is up to the end of the reply.
            on_progress: called after each prefilled chunk with its number of tokens.
        """
        turn = self._template.following if self._started else self._template.first
        self._started = True
        stream = self._generator.generate(
            turn(message),
            max_new_tokens=max_new_tokens,
            eos_token_ids=self._eos_token_ids,
            on_progress=on_progress,
        )
        try:
            for token in stream:
                if token in self._eos_token_ids:
                    # The next turn adds the template's own end token.
                    self._generator.drop_last()
                else:
                    yield token
        finally:
            stream.close()

    def report(self) -> CacheReport:
        """Return the report of the cache."""
        return self._generator.report()

    def reset(self) -> None:
        """Forget all turns; the next message begins with the system prompt again."""
        self._generator.close()
        self._generator = self._new_generator()
        self._started = False


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

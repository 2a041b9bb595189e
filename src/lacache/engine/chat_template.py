"""What each turn of a conversation adds to the text, by the model's own chat template."""

from itertools import takewhile
from typing import Any, final

from jinja2 import TemplateError

from lacache.errors import ModelError

_QUESTION = "first-question"
_ANSWER = "first-answer"


@final
class ChatTemplate:
    """Renders a turn without the turns before it.

    A template renders whole conversations. What a turn adds is what stands after the answer in a
    short made-up conversation that goes before it; this never depends on the turns in between,
    and costs the same at any turn. A template that rewrites earlier turns, for example one that
    takes their reasoning out, would do so in its own rendering and does not here: what was read
    stays as it was read.

    Args:
        tokenizer: of transformers, with a chat template.
        system: the system prompt; None leaves it to the template, which may have its own.

    Raises:
        ModelError: no chat template, or one that refuses such a conversation.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "the model has no chat template, so how it writes a conversation is unknown; use "
                "`lacache generate`, or a model that is tuned for chat"
            )
        self._tokenizer = tokenizer
        self._system = [] if system is None else [{"role": "system", "content": system}]
        one, other = self.first("1"), self.first("x")
        same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        self.num_pinned = len(list(same))
        """Tokens before the first word of the user: the system prompt and the marks around it."""
        marks = set(self.following("1")[:1]) & set(tokenizer.all_special_ids)
        self.end_token_ids = frozenset(marks)
        """The special token that ends an answer, where the template has one."""

    def first(self, message: str) -> list[int]:
        """Tokens of the system prompt and the first message, up to where the answer starts."""
        return self._tokens(self._render([*self._system, _turn("user", message)]))

    def following(self, message: str) -> list[int]:
        """Tokens from the end of an answer, its end mark included, to where the next starts."""
        made_up = [_turn("user", _QUESTION), _turn("assistant", _ANSWER), _turn("user", message)]
        _, found, added = self._render(made_up).partition(_ANSWER)
        if not found:
            raise ModelError(
                "the chat template does not write an answer as it is given, so what a turn adds "
                "is unknown; use `lacache generate`"
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
        # Special tokens are in the template; a long text is no reason for a warning here.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

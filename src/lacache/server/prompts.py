"""From a request to the tokens of its prompt."""

from functools import cached_property
from typing import Any, final

from jinja2 import TemplateError

from lacache.engine.chat_template import ChatTemplate
from lacache.engine.checked import checked_tokens
from lacache.engine.text import TextStream
from lacache.errors import InputError
from lacache.server.limits import Limits
from lacache.server.schemas import ChatRequest, CompletionRequest


@final
class Prompts:
    """Tokens by a model's tokenizer and chat template.

    Args:
        tokenizer: of transformers.
        vocab_size: tokens that the model knows.
        limits: how many tokens a prompt may have.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._limits = limits

    def tokens(self, request: CompletionRequest | ChatRequest, num_seen: int = 0) -> list[int]:
        """The tokens of a prompt.

        Args:
            request: what came.
            num_seen: tokens that its session has read before.

        Raises:
            InputError: there are none, or too many, or none of this model; or the chat template
                refuses the messages.
        """
        if isinstance(request, CompletionRequest):
            tokens = self._of_completion(request, num_seen)
        else:
            tokens = self._of_chat(request, num_seen)
        if not tokens and not num_seen:
            raise InputError("the prompt is empty and at least 1 token is needed; give some text")
        if len(tokens) > self._limits.prompt_tokens:
            raise InputError(
                f"the prompt has {len(tokens)} tokens, and this server reads at most "
                f"{self._limits.prompt_tokens}; shorten it"
            )
        checked_tokens(tokens, self._vocab_size)
        return tokens

    def text_of(self, token: int) -> str:
        """The text of a token by itself; what is not a whole character comes as U+FFFD."""
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)

    def texts_of(self, tokens: list[int]) -> list[str]:
        """The text that each token completes; special ones have theirs too."""
        text = TextStream(self._tokenizer, skip_special_tokens=False)
        return [text.push(token) for token in tokens]

    def _of_completion(self, request: CompletionRequest, num_seen: int) -> list[int]:
        if isinstance(request.prompt, list):
            return request.prompt
        _validate_whole(request.prompt)
        # Marks of a text's beginning have no place in its midst.
        marks = {"add_special_tokens": False} if num_seen else {}
        ids: list[int] = self._tokenizer(request.prompt, verbose=False, **marks).input_ids
        return ids

    def _of_chat(self, request: ChatRequest, num_seen: int) -> list[int]:
        if not self._tokenizer.chat_template:
            raise InputError("the model has no chat template; use /v1/completions")
        for message in request.messages:
            _validate_whole(message.content)
        if num_seen:
            if [message.role for message in request.messages] != ["user"]:
                raise InputError(
                    f"{len(request.messages)} messages came for a session that has begun; send the "
                    "user's new message alone, as the session knows the others"
                )
            return self._template.following(request.messages[0].content)
        messages = [message.model_dump() for message in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses the messages: {error}") from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


def _validate_whole(text: str) -> None:
    """JSON may have half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has half a character at {error.start}: {text[error.start]!a}; leave it out"
        ) from error

"""Tokenization of the prompts of requests."""

from functools import cached_property
from typing import Any, final

from jinja2 import TemplateError
from torch import Tensor

from lacache.engine.chat_template import ChatTemplate
from lacache.engine.detokenizer import Detokenizer
from lacache.engine.validation import validate_tokens
from lacache.errors import InputError
from lacache.server.schemas import ChatRequest, CompletionRequest
from lacache.server.settings import Limits


@final
class Prompts:
    """Tokenizer of prompts: a model's tokenizer and chat template, and the limit of length.

    Args:
        tokenizer: a tokenizer of transformers.
        vocab_size: size of the model's vocabulary.
        limits: limits the length of a prompt.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._limits = limits

    def tokens(self, request: CompletionRequest | ChatRequest, num_seen: int = 0) -> Tensor:
        """Return the token ids [Q] of a request's prompt, int64.

        Args:
            request: a completion or a chat.
            num_seen: tokens that its session has processed before.

        Raises:
            InputError: the prompt is empty, too long, has ids outside the vocabulary or no valid
                text, or the chat template refuses the messages.
        """
        if isinstance(request, CompletionRequest):
            tokens = self._completion_tokens(request, num_seen)
        else:
            tokens = self._chat_tokens(request, num_seen)
        if not tokens and not num_seen:
            raise InputError("the prompt is empty and at least 1 token is needed; give some text")
        if len(tokens) > self._limits.prompt_tokens:
            raise InputError(
                f"the prompt has {len(tokens)} tokens, and this server accepts at most "
                f"{self._limits.prompt_tokens}; shorten it"
            )
        return validate_tokens(tokens, self._vocab_size)

    def token_text(self, token: int) -> str:
        """Return the text of a single token, with U+FFFD for an incomplete character."""
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)

    def detokenizer(self) -> Detokenizer:
        """Return a new detokenizer, for one completion."""
        return Detokenizer(self._tokenizer)

    def token_texts(self, tokens: list[int]) -> list[str]:
        """Return the text that each token completes, special tokens included."""
        text = Detokenizer(self._tokenizer, skip_special_tokens=False)
        return [text.push(token) for token in tokens]

    def _completion_tokens(self, request: CompletionRequest, num_seen: int) -> list[int]:
        if isinstance(request.prompt, list):
            return request.prompt
        _validate_unicode(request.prompt)
        # A BOS token has no place in the middle of a session.
        options = {"add_special_tokens": False} if num_seen else {}
        ids: list[int] = self._tokenizer(request.prompt, verbose=False, **options).input_ids
        return ids

    def _chat_tokens(self, request: ChatRequest, num_seen: int) -> list[int]:
        if not self._tokenizer.chat_template:
            raise InputError("the model has no chat template; use /v1/completions")
        for message in request.messages:
            _validate_unicode(message.content)
        if num_seen:
            if [message.role for message in request.messages] != ["user"]:
                raise InputError(
                    f"{len(request.messages)} messages were sent to a session that has begun; send "
                    "only the new user message, since the session contains the others"
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


def _validate_unicode(text: str) -> None:
    # JSON may contain lone surrogates, which no tokenizer accepts.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate at {error.start}: {text[error.start]!a}; remove it"
        ) from error

"""JSON of responses in OpenAI's format: completions, chats, their chunks, and models."""

import time
from collections.abc import Callable, Sequence
from typing import final
from uuid import uuid4

from lacache.engine.sampler import TokenLogprobs
from lacache.server.completion import Delta, Finished, Token
from lacache.server.schemas import Json

TokenText = Callable[[int], str]
"""Function that returns the text of a single token."""

_EMPTY = Delta("", ())


def models_list(names: Sequence[str]) -> Json:
    """Return the list of models."""
    return {"object": "list", "data": [model_info(name) for name in names]}


def model_info(name: str) -> Json:
    """Return the record of a model."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "lacache"}


def usage(num_prompt: int, num_reused: int, num_new: int) -> Json:
    """Return the `usage` of a response.

    Args:
        num_prompt: tokens of the prompt.
        num_reused: how many of them were in the prefix cache.
        num_new: generated tokens of all completions.
    """
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
        "prompt_tokens_details": {"cached_tokens": num_reused},
    }


@final
class ResponseFormat:
    """Builds the body or the chunks of one response.

    Args:
        model: name of the model.
        is_chat: whether it is a chat or a text completion.
        token_text: text of a token, for log probabilities; None leaves them out.
    """

    def __init__(self, model: str, *, is_chat: bool, token_text: TokenText | None) -> None:
        self._is_chat = is_chat
        self._token_text = token_text
        self._shared = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def body(
        self, completions: Sequence[Sequence[Delta]], reasons: Sequence[str], usage: Json
    ) -> Json:
        """Return the body of a response without streaming, from the deltas of each completion."""
        choices = []
        for index, (deltas, reason) in enumerate(zip(completions, reasons, strict=True)):
            joined = Delta(
                "".join(delta.text for delta in deltas),
                tuple(token for delta in deltas for token in delta.tokens),
            )
            message = {"role": "assistant", "content": joined.text}
            choices.append(self._choice(index, message, joined, reason, "message"))
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices, "usage": usage}

    def first_chunk(self, index: int) -> Json | None:
        """Return the chunk with the role that begins a chat; None for a text completion."""
        if not self._is_chat:
            return None
        role = {"role": "assistant", "content": ""}
        return self._chunk([self._choice(index, role, _EMPTY, None)])

    def delta_chunk(self, index: int, delta: Delta) -> Json:
        """Return the chunk of a delta."""
        return self._chunk([self._choice(index, {"content": delta.text}, delta, None)])

    def last_chunk(self, index: int, event: Finished) -> Json:
        """Return the chunk that ends a completion."""
        return self._chunk([self._choice(index, {}, Delta("", event.tokens), event.reason)])

    def usage_chunk(self, usage: Json) -> Json:
        """Return the chunk with the usage, which ends a stream if the client asks for it."""
        return {**self._chunk([]), "usage": usage}

    def inspector_chunk(self, record: Json) -> Json:
        """Return a chunk with data for the inspector, which OpenAI does not have."""
        return {**self._chunk([]), "lacache": record}

    def _chunk(self, choices: list[Json]) -> Json:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices}

    def _choice(
        self, index: int, message: Json, delta: Delta, reason: str | None, name: str = "delta"
    ) -> Json:
        content = {name: message} if self._is_chat else {"text": delta.text}
        logprobs = self._logprobs(delta.tokens)
        return {"index": index, **content, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        if self._token_text is None or not tokens:
            return None
        form = _chat_logprobs if self._is_chat else _completion_logprobs
        pairs = [(token, token.logprobs) for token in tokens if token.logprobs is not None]
        return form(pairs, self._token_text)


_Pairs = Sequence[tuple[Token, TokenLogprobs]]


def _chat_logprobs(pairs: _Pairs, token_text: TokenText) -> Json:
    return {
        "content": [
            {
                **_entry(token_text(token.id), logprobs.logprob),
                "top_logprobs": [_entry(token_text(top), logprob) for top, logprob in logprobs.top],
            }
            for token, logprobs in pairs
        ],
        "refusal": None,
    }


def _completion_logprobs(pairs: _Pairs, token_text: TokenText) -> Json:
    return {
        "tokens": [token_text(token.id) for token, _ in pairs],
        "token_logprobs": [each.logprob for _, each in pairs],
        # Incomplete characters have the same text; the most likely token is kept.
        "top_logprobs": [
            {token_text(other): logprob for other, logprob in reversed(each.top)}
            for _, each in pairs
        ],
        "text_offset": [token.offset for token, _ in pairs],
    }


def _entry(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

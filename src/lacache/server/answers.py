"""Answers and errors in OpenAI's format, as what JSON holds."""

import time
from typing import Any, final
from uuid import uuid4

Json = dict[str, Any]


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None
) -> Json:
    """An error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def usage(num_prompt: int, num_new: int) -> Json:
    """Tokens that were read and written."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
    }


def models_list(name: str) -> Json:
    """The one model there is."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "lacache"}],
    }


@final
class Answer:
    """The frame of an answer, whole or in pieces."""

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._is_chat = is_chat
        self._shared = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, texts: list[str], reasons: list[str], counts: Json) -> Json:
        """All texts at once."""
        choices = [
            self._choice(index, {"role": "assistant", "content": text}, text, reason, "message")
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices, "usage": counts}

    def first(self, index: int) -> Json | None:
        """What opens a streamed text: in a chat, who speaks."""
        if not self._is_chat:
            return None
        return self._chunk([self._choice(index, {"role": "assistant", "content": ""}, "", None)])

    def piece(self, index: int, text: str) -> Json:
        """A piece of a text."""
        return self._chunk([self._choice(index, {"content": text}, text, None)])

    def last(self, index: int, reason: str) -> Json:
        """The end of a text."""
        return self._chunk([self._choice(index, {}, "", reason)])

    def counts(self, counts: Json) -> Json:
        """The end of a stream, where that was asked for."""
        return {**self._chunk([]), "usage": counts}

    def _chunk(self, choices: list[Json]) -> Json:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices}

    def _choice(
        self, index: int, message: Json, text: str, reason: str | None, name: str = "delta"
    ) -> Json:
        said = {name: message} if self._is_chat else {"text": text}
        return {"index": index, **said, "finish_reason": reason, "logprobs": None}

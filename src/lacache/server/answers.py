"""Answers in OpenAI's format."""

import time
from collections.abc import Sequence
from typing import final
from uuid import uuid4

from lacache.server import logprobs
from lacache.server.job import Finished, Piece
from lacache.server.logprobs import TokenText
from lacache.server.schemas import Json


def usage(num_prompt: int, num_reused: int, num_new: int) -> Json:
    """Tokens of the prompt, those of them that were known already, and what was written."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
        "prompt_tokens_details": {"cached_tokens": num_reused},
    }


def models_list(names: Sequence[str]) -> Json:
    """The models there are."""
    return {"object": "list", "data": [model_info(name) for name in names]}


def model_info(name: str) -> Json:
    """One of them."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "lacache"}


@final
class Answer:
    """The frame of an answer, whole or in pieces.

    Args:
        model: its name.
        is_chat: whether it is a chat or a completion.
        text_of: the text of a token, where log probabilities are told; else None.
    """

    def __init__(self, model: str, *, is_chat: bool, text_of: TokenText | None) -> None:
        self._is_chat = is_chat
        self._text_of = text_of
        self._shared = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, texts: Sequence[Sequence[Piece]], reasons: Sequence[str], counts: Json) -> Json:
        """All texts at once, each in its pieces."""
        choices = []
        for index, (pieces, reason) in enumerate(zip(texts, reasons, strict=True)):
            joined = Piece(
                "".join(piece.text for piece in pieces),
                tuple(token for piece in pieces for token in piece.tokens),
            )
            message = {"role": "assistant", "content": joined.text}
            choices.append(self._choice(index, message, joined, reason, "message"))
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices, "usage": counts}

    def first(self, index: int) -> Json | None:
        """What opens a streamed text: in a chat, who speaks."""
        if not self._is_chat:
            return None
        return self._chunk([self._choice(index, {"role": "assistant", "content": ""}, _NO, None)])

    def piece(self, index: int, piece: Piece) -> Json:
        """A piece of a text."""
        return self._chunk([self._choice(index, {"content": piece.text}, piece, None)])

    def last(self, index: int, end: Finished) -> Json:
        """The end of a text."""
        return self._chunk([self._choice(index, {}, Piece("", end.tokens), end.reason)])

    def counts(self, counts: Json) -> Json:
        """The end of a stream, where that was asked for."""
        return {**self._chunk([]), "usage": counts}

    def inspected(self, told: Json) -> Json:
        """What the inspector is told besides."""
        return {**self._chunk([]), "lacache": told}

    def _chunk(self, choices: list[Json]) -> Json:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices}

    def _choice(
        self, index: int, message: Json, piece: Piece, reason: str | None, name: str = "delta"
    ) -> Json:
        said = {name: message} if self._is_chat else {"text": piece.text}
        return {"index": index, **said, "finish_reason": reason, "logprobs": self._logprobs(piece)}

    def _logprobs(self, piece: Piece) -> Json | None:
        if self._text_of is None or not piece.tokens:
            return None
        form = logprobs.chat_logprobs if self._is_chat else logprobs.completion_logprobs
        return form(piece.tokens, self._text_of)


_NO = Piece("", ())

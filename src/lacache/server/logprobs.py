"""Log probabilities in OpenAI's two formats."""

from collections.abc import Callable, Sequence

from lacache.engine.logprobs import TokenLogprobs
from lacache.server.job import Token
from lacache.server.json import Json

TokenText = Callable[[int], str]
"""The text of one token by itself."""


def of_chat(tokens: Sequence[Token], text_of: TokenText) -> Json:
    """For a chat."""
    return {
        "content": [
            {**_entry(text_of(token.id), told.logprob), "top_logprobs": _top(told, text_of)}
            for token, told in _told(tokens)
        ],
        "refusal": None,
    }


def of_completion(tokens: Sequence[Token], text_of: TokenText) -> Json:
    """For a completion."""
    told = _told(tokens)
    return {
        "tokens": [text_of(token.id) for token, _ in told],
        "token_logprobs": [each.logprob for _, each in told],
        # Tokens that are parts of characters may have the same text; the likeliest counts.
        "top_logprobs": [
            {text_of(other): logprob for other, logprob in reversed(each.top)} for _, each in told
        ],
        "text_offset": [token.offset for token, _ in told],
    }


def _told(tokens: Sequence[Token]) -> list[tuple[Token, TokenLogprobs]]:
    return [(token, token.logprobs) for token in tokens if token.logprobs is not None]


def _top(told: TokenLogprobs, text_of: TokenText) -> list[Json]:
    return [_entry(text_of(token), logprob) for token, logprob in told.top]


def _entry(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

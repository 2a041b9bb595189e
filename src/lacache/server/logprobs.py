"""Log probabilities in OpenAI's two formats, for completions and for chats."""

from collections.abc import Callable, Sequence

from lacache.engine.sampler import TokenLogprobs
from lacache.server.job import Token
from lacache.server.schemas import Json

TokenText = Callable[[int], str]
"""Function that returns the text of a single token."""


def chat_logprobs(tokens: Sequence[Token], text_of: TokenText) -> Json:
    """Return the `logprobs` of a chat choice."""
    return {
        "content": [
            {
                **_entry(text_of(token.id), logprobs.logprob),
                "top_logprobs": [_entry(text_of(top), logprob) for top, logprob in logprobs.top],
            }
            for token, logprobs in _pairs(tokens)
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[Token], text_of: TokenText) -> Json:
    """Return the `logprobs` of a completion choice."""
    pairs = _pairs(tokens)
    return {
        "tokens": [text_of(token.id) for token, _ in pairs],
        "token_logprobs": [each.logprob for _, each in pairs],
        # Incomplete characters have the same text; the most likely token is kept.
        "top_logprobs": [
            {text_of(other): logprob for other, logprob in reversed(each.top)} for _, each in pairs
        ],
        "text_offset": [token.offset for token, _ in pairs],
    }


def _pairs(tokens: Sequence[Token]) -> list[tuple[Token, TokenLogprobs]]:
    return [(token, token.logprobs) for token in tokens if token.logprobs is not None]


def _entry(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

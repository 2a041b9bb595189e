"""Incremental detokenization, in constant memory."""

from typing import Any, final

# A character has at most four bytes, so this many tokens without text are not part of one.
_MAX_HELD = 16
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@final
class Detokenizer:
    """Turns tokens into text; text is returned when no later token can change it.

    Only the last tokens are held: those that gave the last text, and those since. They are decoded
    together, since a token's text may depend on the token before it (a leading space) or after it
    (a character of several tokens). The `DecodeStream` of tokenizers is not used, because it holds
    tokens without text, such as a run of special tokens, without limit.

    Args:
        tokenizer: of transformers, fast or slow.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._previous: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; return the text that it completes, empty if more tokens are needed."""
        self._held.append(token)
        text = self._text()
        if len(self._held) < _MAX_HELD and (not text or text.endswith(_INCOMPLETE)):
            return ""
        return self._release(text)

    def flush(self) -> str:
        """Return the text of the tokens still held, with U+FFFD for an incomplete character."""
        return self._release(self._text())

    def _text(self) -> str:
        previous = self._decode(self._previous)
        return self._decode(self._previous + self._held)[len(previous) :]

    def _release(self, text: str) -> str:
        if text:
            self._previous = self._held
        self._held = []
        return text

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens,
            skip_special_tokens=self._skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

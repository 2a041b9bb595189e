"""Text from tokens as they come, in constant memory."""

from typing import Any, final

# A character is at most four bytes, so as many tokens without text are not part of one.
_LONGEST_WAIT = 16
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@final
class Detokenizer:
    """Turns tokens into text; a text is given out when no later token can change it.

    Only the tokens since the last text but one are held: they are decoded together, since a
    token's text may depend on the one before it (a leading space) or after it (a character in
    several tokens). tokenizers' own `DecodeStream` is not used, because it holds on to tokens
    without text, such as a run of special ones, without limit.

    Args:
        tokenizer: of transformers, fast or slow.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._given: list[int] = []
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes; empty if more tokens are needed first."""
        self._waiting.append(token)
        text = self._text()
        if len(self._waiting) < _LONGEST_WAIT and (not text or text.endswith(_UNFINISHED)):
            return ""
        return self._give(text)

    def flush(self) -> str:
        """The text of the tokens still waiting, an unfinished character as U+FFFD."""
        return self._give(self._text())

    def _text(self) -> str:
        given = self._decode(self._given)
        return self._decode(self._given + self._waiting)[len(given) :]

    def _give(self, text: str) -> str:
        if text:
            self._given = self._waiting
        self._waiting = []
        return text

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens,
            skip_special_tokens=self._skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

"""Text from tokens as they come, and the stop rules that end it; in constant memory."""

from collections.abc import Sequence
from typing import Any, final

from lacache.errors import ConfigError

# A character has at most four bytes, so this many tokens without text are not part of one.
_MAX_HELD = 16
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

_MAX_STOPS = 64
_MAX_STOP_LENGTH = 256


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


@final
class StopStrings:
    """Cuts text before the first stop string, in constant memory.

    Its input is the output of a `Detokenizer`, so a stop string may span any number of tokens. The
    first stop string is the one that ends first, and of those that end at the same place, the
    longest; this does not depend on how the text is split. Only an end of the text that may be the
    beginning of a stop string is held back: fewer characters than the longest of them.

        text, stops = Detokenizer(tokenizer), StopStrings(["User:", "###"])
        for token in tokens:
            print(stops.push(text.push(token)), end="")
            if stops.found is not None:
                break
        print(stops.push(text.flush()) + stops.flush())

    Args:
        stops: at most 64 strings of at most 256 characters; without any, all text passes.

    Raises:
        ConfigError: a stop string that is empty or too long, too many, or no list of strings.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = _validate(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text; None so far."""

    def push(self, text: str) -> str:
        """Add text; return what no later text can change, empty after a stop string."""
        if self.found is not None:
            return ""
        text = self._held + text
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if matches:
            _, cut, self.found = min(matches)
            self._held = ""
        else:
            cut = len(text) - max((_partial_match(text, stop) for stop in self._stops), default=0)
            self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """Return the text that is still held back, at the end."""
        text, self._held = self._held, ""
        return text


def find_eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the end-of-sequence tokens of the model's generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = set(configured) if isinstance(configured, list) else {configured}
    return frozenset(ids | {tokenizer.eos_token_id}) - {None}


def _partial_match(text: str, stop: str) -> int:
    """Return the number of characters at the end of the text that begin a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _validate(stops: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stops, str) or not isinstance(stops, Sequence):
        raise ConfigError(f"stop={stops!r} must be a list of strings; try stop={[str(stops)]!r}")
    if len(stops) > _MAX_STOPS:
        raise ConfigError(
            f"{len(stops)} stop strings are given, and at most {_MAX_STOPS} can be; leave some out"
        )
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise ConfigError(
                f"stop={stop!r} must be a string of at least 1 character; leave it out"
            )
        if len(stop) > _MAX_STOP_LENGTH:
            raise ConfigError(
                f"stop={stop[:16]!r}... has {len(stop)} characters, and at most {_MAX_STOP_LENGTH} "
                "can be; its beginning will do"
            )
    return tuple(stops)

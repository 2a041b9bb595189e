"""What ends a completion: the end-of-sequence tokens and the stop strings."""

from collections.abc import Sequence
from typing import Any, final

from lacache.errors import ConfigError

_MOST = 64
_LONGEST = 256


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that the model's generation configuration and the tokenizer say end a text."""
    configured = model.generation_config.eos_token_id
    ids = set(configured) if isinstance(configured, list) else {configured}
    return frozenset(ids | {tokenizer.eos_token_id}) - {None}


@final
class StopStrings:
    """Passes text on up to the first stop string; neither that nor what follows comes out.

    It stands behind a `Detokenizer`, so a stop string may span any number of tokens. The first one
    is the one that ends first, and of those that end at the same place, the longest; this doesn't
    depend on how the text is cut into pieces. Held back is only an end of the text that may be the
    beginning of a stop string: less than the longest of them.

        text, stops = Detokenizer(tokenizer), StopStrings(["User:", "###"])
        for token in tokens:
            print(stops.push(text.push(token)), end="")
            if stops.found is not None:
                break
        print(stops.push(text.flush()) + stops.flush())

    Args:
        stops: the strings, at most 64 of at most 256 characters; none of them lets all text pass.

    Raises:
        ConfigError: a stop string that is empty or too long, too many, or no list of strings.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = _checked(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text; None if none did so far."""

    def push(self, piece: str) -> str:
        """The text that this piece makes certain; empty after a stop string."""
        if self.found is not None:
            return ""
        text = self._held + piece
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if matches:
            _, cut, self.found = min(matches)
            self._held = ""
        else:
            cut = len(text) - max((_begun(text, stop) for stop in self._stops), default=0)
            self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text still held back, when no more comes."""
        text, self._held = self._held, ""
        return text


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _checked(stops: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stops, str) or not isinstance(stops, Sequence):
        raise ConfigError(f"stop={stops!r} must be a list of strings; try stop={[str(stops)]!r}")
    if len(stops) > _MOST:
        raise ConfigError(
            f"{len(stops)} stop strings are given, and at most {_MOST} can be; leave some out"
        )
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise ConfigError(
                f"stop={stop!r} must be a string of at least 1 character; leave it out"
            )
        if len(stop) > _LONGEST:
            raise ConfigError(
                f"stop={stop[:16]!r}... has {len(stop)} characters, and at most {_LONGEST} can be; "
                "its beginning will do"
            )
    return tuple(stops)

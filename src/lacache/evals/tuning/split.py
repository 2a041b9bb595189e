"""Two parts of a text that share nothing: one to choose on, one to report on."""

import random
from dataclasses import dataclass
from typing import Any, final

from lacache.errors import InputError
from lacache.evals.hub_texts import load_named_text

FEWEST_STRETCHES = 2
"""Of each part: one alone says nothing of how much chance is in its figures."""

# A text that is cut is not always cut between tokens of the whole, so a few are read in no part.
_GAP = 16
# In fewer tokens there is hardly room for needles and questions.
_SHORTEST = 256


@final
@dataclass(frozen=True)
class Part:
    """One part of a text.

    Args:
        name: for people and records.
        text: a built-in text or a file.
        characters: first and last but one.
        tokens: likewise, in tokens of the whole text.
        seed: of everything that is drawn by chance in this part.
    """

    name: str
    text: str
    characters: tuple[int, int]
    tokens: tuple[int, int]
    seed: int

    def stretches(self, length: int) -> list[int]:
        """First tokens of stretches that do not meet, in an order drawn by chance."""
        first, last = self.tokens
        starts = list(range(first, last - length + 1, length))
        random.Random(f"stretches {self.seed}").shuffle(starts)
        return starts


def split_text(tokenizer: Any, text: str, *, length: int, seed: int) -> tuple[Part, Part]:
    """The first half, to compare candidates on, and the second, held out.

    Args:
        tokenizer: of the model.
        text: a built-in text such as "wikipedia", or a UTF-8 file.
        length: tokens of a stretch; each part holds at least two.
        seed: of what is drawn in the first part; the second has the next one.

    Raises:
        InputError: no such text, or one that is too short.
    """
    content = load_named_text(text).content
    middle = len(content) // 2
    tokens = _count(tokenizer, content)
    border = _count(tokenizer, content[:middle])
    parts = (
        Part("compared", text, (0, middle), (0, border - _GAP), seed),
        Part("held out", text, (middle, len(content)), (border + _GAP, tokens), seed + 1),
    )
    held = min(last - first for first, last in (part.tokens for part in parts))
    longest = held // FEWEST_STRETCHES
    if longest < length:
        needed = 2 * (FEWEST_STRETCHES * length + _GAP)
        shorter = (
            f", or a smaller budget with --length {longest} or less" if longest >= _SHORTEST else ""
        )
        raise InputError(
            f"text {text} has {tokens:,} tokens, too little text to choose: {needed:,} are needed "
            f"for {FEWEST_STRETCHES} stretches of {length:,} to compare on and as many that are "
            f"held out; try a longer text{shorter}"
        )
    return parts


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

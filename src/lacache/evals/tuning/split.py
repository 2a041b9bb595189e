"""Two parts of a text that share nothing: one to choose on, one to report on."""

import random
from dataclasses import dataclass
from typing import Any, final

from lacache.errors import InputError
from lacache.evals.tasks.documents import load_named_document

FEWEST_EXCERPTS = 2
"""Of each part: one alone does not show how much of its figures is chance."""

# A text that is cut is not always cut between tokens of the whole, so a few belong to no part.
_GAP = 16
# Fewer tokens have hardly room for needles and questions.
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

    def excerpts(self, length: int) -> list[int]:
        """Return the first tokens of excerpts that do not overlap, in random order."""
        first, last = self.tokens
        starts = list(range(first, last - length + 1, length))
        random.Random(f"excerpts {self.seed}").shuffle(starts)
        return starts


def split_text(tokenizer: Any, text: str, *, length: int, seed: int) -> tuple[Part, Part]:
    """Return the first half, to compare candidates on, and the second, held out.

    Args:
        tokenizer: of the model.
        text: a built-in text such as "wikipedia", or a UTF-8 file.
        length: tokens of an excerpt; each part holds at least two.
        seed: of what is drawn in the first part; the second has the next one.

    Raises:
        InputError: no such text, or one that is too short.
    """
    content = load_named_document(text).content
    middle = len(content) // 2
    tokens = _count(tokenizer, content)
    border = _count(tokenizer, content[:middle])
    parts = (
        Part("compared", text, (0, middle), (0, border - _GAP), seed),
        Part("held out", text, (middle, len(content)), (border + _GAP, tokens), seed + 1),
    )
    held = min(last - first for first, last in (part.tokens for part in parts))
    longest = held // FEWEST_EXCERPTS
    if longest < length:
        needed = 2 * (FEWEST_EXCERPTS * length + _GAP)
        shorter = (
            f", or a smaller budget with --length {longest} or less" if longest >= _SHORTEST else ""
        )
        raise InputError(
            f"text {text} has {tokens:,} tokens, too little text to choose: {needed:,} are needed "
            f"for {FEWEST_EXCERPTS} excerpts of {length:,} to compare on and as many that are "
            f"held out; try a longer text{shorter}"
        )
    return parts


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

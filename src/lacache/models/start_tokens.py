"""The tokens that a tokenizer puts before a text, such as a BOS token."""

from typing import Any

_TEXT = "a"


def start_tokens(tokenizer: Any) -> list[int]:
    """Return the token ids that a tokenizer puts before every text.

    An empty text has what comes after a text too, where a tokenizer ends texts with a token.

    Args:
        tokenizer: a tokenizer of transformers.
    """
    plain: list[int] = tokenizer(_TEXT, add_special_tokens=False).input_ids
    whole: list[int] = tokenizer(_TEXT).input_ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []

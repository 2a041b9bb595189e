"""Shorten a prompt as LongBench does: from the middle."""

from typing import Any

from lacache.evals.tasks.lengths import count_tokens


def cut_middle(tokenizer: Any, context: str, question: str, *, room: int) -> str | None:
    """The context, shortened so that it makes at most `room` tokens with the question.

    Both ends of the whole prompt stay, half of the tokens each (`pred.py` in LongBench); the
    question is part of the second half and is never cut. None if it leaves nothing for a context.
    """
    if count_tokens(tokenizer, context, question) <= room:
        return context
    ids = tokenizer(context, add_special_tokens=False, verbose=False).input_ids
    start = count_tokens(tokenizer)
    asked = count_tokens(tokenizer, question) - start
    last = max(0, room // 2 - asked)
    first = min(room // 2, room - asked) - start
    while first > 0:
        ends = (ids[:first], ids[len(ids) - last :])
        text = "".join(tokenizer.decode(end, skip_special_tokens=True) for end in ends)
        # The text at the cut may make more tokens than its two sides did.
        over = count_tokens(tokenizer, text, question) - room
        if over <= 0:
            return text
        first -= over
    return None

"""How likely a text is, token by token, given what is held when each comes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.engine.runner import Runner


def score(
    runner: Runner,
    row: int,
    before: Tensor | None,
    tokens: Tensor,
    *,
    chunk: int,
    on_read: Callable[[Tensor, Tensor], None],
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Read tokens of a row and score each.

    Memory is that of the row, of one chunk's logits and of the scores.

    Args:
        runner: of the engine.
        row: which sequence.
        before: logits [V] for the first of the tokens; None where nothing comes before it.
        tokens: [Q], Q >= 1, on the CPU.
        chunk: most tokens per forward; forwards also end where a compaction falls due.
        on_read: called after each forward with its tokens, and the logits [V] that follow them; so
            the text is known where an exception ends the scoring.
        on_progress: called with the number of tokens after each forward.

    Returns:
        Negative log-likelihoods in nats [Q], or [Q - 1] where nothing came before, in float32 on
        the CPU.
    """
    scores = []
    start = 0
    while start < len(tokens):
        length = min(chunk, len(tokens) - start, runner.store.rows[row].room())
        piece = tokens[start : start + length]
        logits = runner.read_all(row, piece)
        # At once: whatever ends the scoring below, these tokens are read.
        on_read(piece, logits[-1])
        predicted = logits[:-1] if before is None else torch.cat([before[None], logits[:-1]])
        targets = piece[length - len(predicted) :].to(logits.device)
        scores.append(cross_entropy(predicted, targets, reduction="none").cpu())
        before = logits[-1]
        start += length
        if on_progress is not None:
            on_progress(length)
    return torch.cat(scores)

"""How likely the model found a token, and which it found likeliest."""

from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True)
class TokenLogprobs:
    """Of one chosen token, in nats, before temperature, filters and penalties.

    Args:
        logprob: of the token.
        top: the likeliest tokens and theirs, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token: int, num_top: int) -> TokenLogprobs:
    """From logits [V] by which a token was chosen."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(float(logprobs[token]), tuple(pairs))

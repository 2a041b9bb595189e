"""What a score is: what a scored cache keeps the tokens by."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Scorer(ABC):
    """A way to say which of the tokens held matter most. Subclasses are frozen dataclasses."""

    @abstractmethod
    def protected(self, num_held: int) -> int:
        """How many of the newest of `num_held` tokens are never evicted."""


class KeyScorer(Scorer, ABC):
    """A score from keys and values alone: works with any implementation of attention."""

    @abstractmethod
    def score(self, keys: Tensor, values: Tensor) -> Tensor:
        """The score of each token [H, N] in each KV head; the lowest are evicted.

        Args:
            keys: rotated to their slots, as the model reads them [H, N, D].
            values: [H, N, D].
        """


class AttentionScorer(Scorer, ABC):
    """A score from attention weights, remembered from forward to forward."""

    @property
    @abstractmethod
    def looks(self) -> int | None:
        """How many of the newest tokens' attention the score is made of; None for all."""

    @abstractmethod
    def remember(self, memory: Tensor | None, weights: Tensor) -> Tensor:
        """What is known after a forward.

        Args:
            memory: what was known before of the tokens then held [H, M, N - Q], if anything.
            weights: attention of the new tokens [H, G, Q, N], with G query heads to a KV head.

        Returns:
            What is known now [H, M', N].
        """

    @abstractmethod
    def score(self, memory: Tensor) -> Tensor:
        """The score of each token [H, N] in each KV head, from what is known [H, M, N]."""


def best(scores: Tensor, count: int, *, sinks: int, protected: int) -> Tensor:
    """Slots [H, count] of the tokens to keep, in increasing order.

    The first `sinks` and the newest `protected` stay; of tokens with one score the older goes.

    Args:
        scores: of the tokens held [H, N].
        count: how many to keep, from `sinks + protected` to N.
        sinks: first tokens, never evicted.
        protected: newest tokens, not evicted now.
    """
    num_held = scores.shape[-1]
    scores = scores.float().clone()
    scores[:, :sinks] = torch.inf
    scores[:, num_held - protected :] = torch.inf
    order = scores.argsort(dim=-1, stable=True)
    return order[:, num_held - count :].sort(dim=-1).values

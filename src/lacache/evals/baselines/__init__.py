"""Caches that evict by score: reference points from the literature, not products.

Unlike the product's policies, what these keep depends on the text, and each KV head of each layer
keeps its own tokens. The attention-based ones need attention weights, so they run on the eager
implementation of attention.
"""

from lacache.evals.baselines.cache import ScoredCache
from lacache.evals.baselines.counts import Counts
from lacache.evals.baselines.pyramid import pyramid
from lacache.evals.baselines.random_ladder import RandomLadder
from lacache.evals.baselines.scorer import AttentionScorer, KeyScorer, Scorer
from lacache.evals.baselines.scorers import H2O, TOVA, KeyDiff, Knorm, LagKV, SnapKV

__all__ = [
    "H2O",
    "TOVA",
    "AttentionScorer",
    "Counts",
    "KeyDiff",
    "KeyScorer",
    "Knorm",
    "LagKV",
    "RandomLadder",
    "ScoredCache",
    "Scorer",
    "SnapKV",
    "pyramid",
]

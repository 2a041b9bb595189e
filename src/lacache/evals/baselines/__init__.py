"""Caches that evict by score: reference points from the literature, not products.

Unlike the product's policies, what these keep depends on the text, and each KV head of each layer
keeps its own tokens. The attention-based ones need attention weights, so they run on the eager
implementation of attention.
"""

from lacache.evals.baselines.attention_policies import H2O, TOVA, AttentionPolicy, PyramidKV, SnapKV
from lacache.evals.baselines.cache import ScoredCache
from lacache.evals.baselines.key_policies import KeyDiff, KeyPolicy, Knorm, LagKV
from lacache.evals.baselines.policy import ScoredPolicy
from lacache.evals.baselines.random_ladder import RandomLadder
from lacache.policies.grammar import Kinds

BASELINES: Kinds = (RandomLadder, KeyDiff, Knorm, LagKV, TOVA, H2O, SnapKV, PyramidKV)
"""The policies that the evaluation has besides `lacache.policies.POLICIES`."""

__all__ = [
    "BASELINES",
    "H2O",
    "TOVA",
    "AttentionPolicy",
    "KeyDiff",
    "KeyPolicy",
    "Knorm",
    "LagKV",
    "PyramidKV",
    "RandomLadder",
    "ScoredCache",
    "ScoredPolicy",
    "SnapKV",
]

"""Which tokens each layer keeps: integers only, no torch."""

from lacache.policies.budget import Budget, parse_budget
from lacache.policies.full import Full
from lacache.policies.geometry import Geometry, default_span_overlap
from lacache.policies.groups import Group, Groups, mean_capacity
from lacache.policies.kept import KeptTokens, coverage, kept_after
from lacache.policies.ladder import Ladder
from lacache.policies.registry import POLICIES
from lacache.policies.retrieval_heads import RetrievalHeads
from lacache.policies.schedule import UNBOUNDED, BoundGroup, Plan, Policy, Schedule, State
from lacache.policies.shrinking_window import ShrinkingWindow
from lacache.policies.streaming import Streaming
from lacache.policies.timetable import Timetable

__all__ = [
    "POLICIES",
    "UNBOUNDED",
    "BoundGroup",
    "Budget",
    "Full",
    "Geometry",
    "Group",
    "Groups",
    "KeptTokens",
    "Ladder",
    "Plan",
    "Policy",
    "RetrievalHeads",
    "Schedule",
    "ShrinkingWindow",
    "State",
    "Streaming",
    "Timetable",
    "coverage",
    "default_span_overlap",
    "kept_after",
    "mean_capacity",
    "parse_budget",
]

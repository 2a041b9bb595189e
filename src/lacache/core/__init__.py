"""Which tokens each layer keeps: integers only, no torch."""

from lacache.core.budget import Budget, parse_budget
from lacache.core.full import Full
from lacache.core.geometry import Geometry, default_span_overlap
from lacache.core.groups import Group, Groups, mean_capacity
from lacache.core.history import HistoryConfig
from lacache.core.kept import KeptTokens, coverage, kept_after
from lacache.core.ladder import LadderConfig
from lacache.core.registry import POLICIES
from lacache.core.schedule import UNBOUNDED, BoundGroup, Plan, Policy, Schedule, State
from lacache.core.shrinking_window import ShrinkingWindow
from lacache.core.sink_window import SinkWindow
from lacache.core.timetable import Timetable

__all__ = [
    "POLICIES",
    "UNBOUNDED",
    "BoundGroup",
    "Budget",
    "Full",
    "Geometry",
    "Group",
    "Groups",
    "HistoryConfig",
    "KeptTokens",
    "LadderConfig",
    "Plan",
    "Policy",
    "Schedule",
    "ShrinkingWindow",
    "SinkWindow",
    "State",
    "Timetable",
    "coverage",
    "default_span_overlap",
    "kept_after",
    "mean_capacity",
    "parse_budget",
]

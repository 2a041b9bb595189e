"""Which tokens each layer keeps: integers only, no torch.

Read `policy` first, then `schedule` and `ladder`; `bind` brings a policy, a budget and a model
together, `grammar` reads policies as text, `members` the layers and KV heads in them, `reference`
is the slow twin that tests trust.
"""

from lacache.policies.bind import BoundPolicy, bind_policy, validate_budget
from lacache.policies.budget import Budget, BudgetLike, parse_budget
from lacache.policies.full import Full
from lacache.policies.geometry import Geometry, default_span_overlap
from lacache.policies.grammar import DEFAULT_POLICY, POLICIES, parse_policy, policy_names
from lacache.policies.groups import Group, Groups, mean_capacity, most_slots
from lacache.policies.head_profile import HeadProfile
from lacache.policies.kept import KeptTokens, coverage, kept_after
from lacache.policies.ladder import Ladder
from lacache.policies.paper import Paper
from lacache.policies.policy import BoundGroup, LayerPolicy, ModelShape, Policy
from lacache.policies.retrieval_heads import RetrievalHeads
from lacache.policies.schedule import UNBOUNDED, Schedule, State, Timetable
from lacache.policies.shrinking_window import ShrinkingWindow
from lacache.policies.streaming import Streaming
from lacache.policies.uniform import Uniform

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "UNBOUNDED",
    "BoundGroup",
    "BoundPolicy",
    "Budget",
    "BudgetLike",
    "Full",
    "Geometry",
    "Group",
    "Groups",
    "HeadProfile",
    "KeptTokens",
    "Ladder",
    "LayerPolicy",
    "ModelShape",
    "Paper",
    "Policy",
    "RetrievalHeads",
    "Schedule",
    "ShrinkingWindow",
    "State",
    "Streaming",
    "Timetable",
    "Uniform",
    "bind_policy",
    "coverage",
    "default_span_overlap",
    "kept_after",
    "mean_capacity",
    "most_slots",
    "parse_budget",
    "parse_policy",
    "policy_names",
    "validate_budget",
]

"""Policies by name, for the command line and records. A new policy adds one row here."""

from lacache.policies.full import Full
from lacache.policies.ladder import Ladder
from lacache.policies.schedule import Policy
from lacache.policies.streaming import Streaming

POLICIES: dict[str, type[Policy]] = {
    "ladder": Ladder,
    "streaming": Streaming,
    "full": Full,
}

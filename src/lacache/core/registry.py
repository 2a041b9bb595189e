"""Policies by name, for the command line and records. A new policy adds one row here."""

from lacache.core.full import Full
from lacache.core.ladder import LadderConfig
from lacache.core.schedule import Policy
from lacache.core.sink_window import SinkWindow

POLICIES: dict[str, type[Policy]] = {
    "ladder": LadderConfig,
    "streaming": SinkWindow,
    "full": Full,
}

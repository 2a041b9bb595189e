"""Tasks by name, for the command line and records. A new task adds one row here."""

from collections.abc import Callable

from lacache.evals.specs import parse_spec
from lacache.evals.tasks.longbench.longbench import LONGBENCH
from lacache.evals.tasks.multiturn import MultiTurn
from lacache.evals.tasks.needle import Needle
from lacache.evals.tasks.passkey import Passkey
from lacache.evals.tasks.passkey_grid import PasskeyGrid
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.ruler.table import RULER
from lacache.evals.tasks.stretch_needles import StretchNeedles
from lacache.evals.tasks.task import Task

TASKS: dict[str, Callable[..., Task]] = {
    Passkey.name: Passkey,
    PasskeyGrid.name: PasskeyGrid,
    Needle.name: Needle,
    MultiTurn.name: MultiTurn,
    StretchNeedles.name: StretchNeedles,
    **RULER,
    **LONGBENCH,
}


def parse_task(spec: str) -> Task | Perplexity:
    """The task that `NAME` or `NAME:key=value,key=value` says; perplexity is called "ppl".

    Raises:
        ConfigError: no such task or setting, or a value that does not fit.
    """
    everything: dict[str, Callable[..., Task | Perplexity]] = {**TASKS, Perplexity.name: Perplexity}
    return parse_spec(spec, everything, "task")

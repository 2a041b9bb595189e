"""All tasks by name, for the command line and records. A new task adds one line here."""

from collections.abc import Callable

from lacache.evals.specs import parse_spec
from lacache.evals.tasks.document_needles import DocumentNeedles
from lacache.evals.tasks.longbench import LONGBENCH
from lacache.evals.tasks.needles import MultiTurn, Needle
from lacache.evals.tasks.passkey import Passkey, PasskeyGrid
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.ruler.niah import NIAH
from lacache.evals.tasks.ruler.qa import Hotpot, Squad
from lacache.evals.tasks.ruler.ruler import Ruler
from lacache.evals.tasks.ruler.tracing import CommonWords, FrequentWords, VariableTracking
from lacache.evals.tasks.task import Task

_RULER: tuple[type[Ruler], ...] = (
    *NIAH,
    *(VariableTracking, CommonWords, FrequentWords),
    *(Squad, Hotpot),
)
RULER: dict[str, type[Ruler]] = {task.name: task for task in _RULER}
"""RULER's 13 tasks by name."""

TASKS: dict[str, Callable[..., Task]] = {
    Passkey.name: Passkey,
    PasskeyGrid.name: PasskeyGrid,
    Needle.name: Needle,
    MultiTurn.name: MultiTurn,
    DocumentNeedles.name: DocumentNeedles,
    **RULER,
    **LONGBENCH,
}


def parse_task(spec: str) -> Task | Perplexity:
    """Make the task of `NAME` or `NAME:key=value,key=value`; perplexity is called "ppl".

    Raises:
        ConfigError: there is no such task or setting, or a value is out of range.
    """
    everything: dict[str, Callable[..., Task | Perplexity]] = {**TASKS, Perplexity.name: Perplexity}
    return parse_spec(spec, everything, "task")

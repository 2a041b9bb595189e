"""All tasks by name, for the command line and records. A new task adds one line here."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from lacache.common.settings_text import parse_settings
from lacache.errors import ConfigError
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
    """Make the task of `NAME` or `NAME:key=value:key=value`; perplexity is called "ppl".

    A value that is text may hold colons, as in `ppl:text=wikipedia:Algae`.

    Raises:
        ConfigError: there is no such task or setting, or a value is out of range.
    """
    kinds: dict[str, Callable[..., Task | Perplexity]] = {**TASKS, Perplexity.name: Perplexity}
    name, _, settings = spec.strip().partition(":")
    if name not in kinds:
        raise ConfigError(
            f"task {name!r} must be one of {_list_for(name, kinds)}; try {_nearest(name, kinds)}"
        )
    return kinds[name](**parse_settings("task", name, kinds[name], settings, with_colons=True))


def _list_for(wrong: str, names: Iterable[str]) -> str:
    """Return names for an error: of a large family with a common start, only those asked for."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.partition("-")[0], []).append(name)
    asked = families.get(wrong.partition("-")[0])
    if asked:
        return ", ".join(asked)
    return ", ".join(
        ", ".join(members)
        if len(members) < 5
        else f"{family}-NAME ({len(members)}; {family!r} lists them)"
        for family, members in families.items()
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return up to three names like a wrong one, else the first name."""
    known = list(names)
    near = get_close_matches(name, known) or [n for n in known if name in n][:3]
    return " or ".join(near or known[:1])

"""Tasks by name, for the command line and records. A new task adds one row here."""

from collections.abc import Callable

from lacache.evals.specs import parse_spec
from lacache.evals.tasks.task import Task

TASKS: dict[str, Callable[..., Task]] = {}


def parse_task(spec: str) -> Task:
    """The task that `NAME` or `NAME:key=value,key=value` says.

    Raises:
        ConfigError: no such task or setting, or a value that does not fit.
    """
    return parse_spec(spec, TASKS, "task")

"""What a recipe is: a model and the runs that make a table of the paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from lacache.evals.runs import RunSpec
from lacache.evals.suite import Suite


@final
@dataclass(frozen=True)
class Recipe:
    """A table of the paper.

    Args:
        name: what it is asked for by.
        title: one line, for a list of recipes.
        models: names on the hub; the first is run unless the user names another.
        suites: makes the suites that it consists of. Called when it is run, as some need an extra
            to know their runs.
    """

    name: str
    title: str
    models: tuple[str, ...]
    suites: Callable[[], Sequence[Suite]]

    def runs(self, **changes: Any) -> list[RunSpec]:
        """Its runs, each once.

        Args:
            changes: fields of `Suite` that take the place of the recipe's, such as fewer samples
                for a try; the figures are then no longer those of the paper's table.

        Raises:
            ConfigError: a value that cannot be.
            MissingExtraError: a package that the recipe needs is not installed.
        """
        suites = [replace(suite, **changes) for suite in self.suites()]
        return list(dict.fromkeys(run for suite in suites for run in suite.runs()))

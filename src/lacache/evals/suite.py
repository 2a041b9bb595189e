"""Lists of runs: every task, length and budget with every method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.answering import Asking, FirstToken, Protocol
from lacache.evals.methods.full import FullCache
from lacache.evals.methods.registry import parse_method
from lacache.evals.runs import MOST_SAMPLES, RunSpec
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.registry import parse_task


@final
@dataclass(frozen=True)
class Suite:
    """What `lacache eval` runs. A recipe that is no such product is just a list of RunSpec.

    Args:
        tasks: specs such as "needle:haystack=wikipedia".
        methods: specs such as "ladder:span=15".
        budgets: for the tasks with questions.
        lengths: for the tasks with questions.
        ppl_budgets: for perplexity.
        ppl_lengths: for perplexity.
        protocols: "strict", "dense"; perplexity is strict only.
        first_token: in the dense protocol, "cache" or "dense".
        samples: for each task and length.
        seed: of the samples.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    lengths: tuple[int, ...]
    ppl_budgets: tuple[str, ...]
    ppl_lengths: tuple[int, ...]
    protocols: tuple[Protocol, ...] = ("strict",)
    first_token: FirstToken = "cache"
    samples: int = 10
    seed: int = 0

    def runs(self) -> list[RunSpec]:
        """The runs, those of the same samples one after the other, each once.

        The full cache has neither budget nor protocol, and so runs once for each task and length.

        Raises:
            ConfigError: no such task or method, or a value that cannot be.
        """
        validate_int("samples", self.samples, 1, MOST_SAMPLES)
        for name in ("tasks", "methods", "budgets", "lengths", "protocols"):
            if not getattr(self, name):
                raise ConfigError(f"no {name} were given; give at least one")
        Asking("dense", self.first_token)
        if self.first_token == "dense" and "dense" not in self.protocols:
            raise ConfigError(
                "first_token='dense' needs the dense protocol; add dense to the protocols"
            )
        runs = list(dict.fromkeys(self._all()))
        if not runs:
            raise ConfigError(
                "perplexity is measured in the strict protocol alone, so nothing is left to run; "
                "add strict to the protocols"
            )
        return runs

    def _all(self) -> Iterator[RunSpec]:
        methods = [parse_method(spec) for spec in self.methods]
        for task in [parse_task(spec) for spec in self.tasks]:
            is_ppl = isinstance(task, Perplexity)
            for length in self.ppl_lengths if is_ppl else self.lengths:
                for protocol in self.protocols:
                    if is_ppl and protocol == "dense":
                        continue
                    for budget in self.ppl_budgets if is_ppl else self.budgets:
                        for method in methods:
                            is_full = isinstance(method, FullCache)
                            dense = protocol == "dense" and not is_full
                            yield RunSpec(
                                task=task,
                                method=method,
                                length=length,
                                budget="1.0" if is_full else budget,
                                count=1 if is_ppl else self.samples,
                                seed=0 if is_ppl else self.seed,
                                protocol="strict" if is_full else protocol,
                                first_token=self.first_token if dense else "cache",
                            )


SMALL = Suite(
    tasks=("passkey", "needle", "multiturn", "ppl"),
    methods=("full", "streaming", "preset", "preset:preset=global"),
    budgets=("0.25", "0.5"),
    lengths=(1024, 2048),
    ppl_budgets=("256",),
    ppl_lengths=(8192,),
    samples=6,
)
"""40 minutes at most on 2 cores with the default model."""

QUICK = Suite(
    tasks=("passkey", "needle", "ppl"),
    methods=("full", "streaming", "preset", "preset:preset=global"),
    budgets=("0.5",),
    lengths=(512,),
    ppl_budgets=("256",),
    ppl_lengths=(1024,),
    samples=3,
)
"""Three minutes at most on a laptop's core with the default model: enough to see that it works."""

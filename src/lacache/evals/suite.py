"""Suites of runs: every task, length and budget with every policy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.policies import parse_eval_policy
from lacache.evals.runs import CHUNKED, MOST_SAMPLES, FirstToken, Prefill, Protocol, RunSpec
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.registry import parse_task
from lacache.policies import Full


@final
@dataclass(frozen=True)
class Suite:
    """A product of tasks, policies, budgets and lengths. Other recipes are lists of RunSpec.

    Args:
        tasks: specs such as "needle:haystack=wikipedia".
        policies: such as "ladder:span=15".
        budgets: for the tasks with questions.
        lengths: for the tasks with questions.
        ppl_budgets: for perplexity.
        ppl_lengths: for perplexity.
        prefills: "chunked", "dense"; perplexity is chunked only.
        first_token: with a dense prefill, "cache" or "dense".
        samples: for each task and length.
        seed: of the samples.
        kv_dtype: what all policies store keys and values in; None is the model's own type.
    """

    tasks: tuple[str, ...]
    policies: tuple[str, ...]
    budgets: tuple[str, ...]
    lengths: tuple[int, ...]
    ppl_budgets: tuple[str, ...] = ()
    ppl_lengths: tuple[int, ...] = ()
    prefills: tuple[Prefill, ...] = ("chunked",)
    first_token: FirstToken = "cache"
    samples: int = 10
    seed: int = 0
    kv_dtype: str | None = None

    def runs(self) -> list[RunSpec]:
        """List the runs, those of the same samples one after the other, each once.

        The full cache has neither budget nor protocol, and so runs once for each task and length.

        Raises:
            ConfigError: no such task or policy, or a value out of range.
        """
        validate_int("samples", self.samples, 1, MOST_SAMPLES)
        for name in ("tasks", "policies", "budgets", "lengths", "prefills"):
            if not getattr(self, name):
                raise ConfigError(f"no {name} were given; give at least one")
        Protocol("dense", self.first_token)
        if self.first_token == "dense" and "dense" not in self.prefills:
            raise ConfigError("first_token='dense' needs a dense prefill; add dense to --prefill")
        runs = list(dict.fromkeys(self._product()))
        if not runs:
            raise ConfigError(
                "perplexity is measured with a chunked prefill only, so there is nothing to run; "
                "add chunked to --prefill"
            )
        return runs

    def _product(self) -> Iterator[RunSpec]:
        policies = [parse_eval_policy(text) for text in self.policies]
        protocols = [
            Protocol(prefill, self.first_token if prefill == "dense" else "cache")
            for prefill in self.prefills
        ]
        for task in map(parse_task, self.tasks):
            is_ppl = isinstance(task, Perplexity)
            count, seed = (1, 0) if is_ppl else (self.samples, self.seed)
            for length in self.ppl_lengths if is_ppl else self.lengths:
                for protocol in protocols:
                    if is_ppl and protocol.is_dense:
                        continue
                    for budget in self.ppl_budgets if is_ppl else self.budgets:
                        for policy in policies:
                            yield RunSpec(
                                task,
                                policy,
                                length,
                                budget if policy.takes_budget else "1.0",
                                count,
                                seed,
                                CHUNKED if isinstance(policy, Full) else protocol,
                                self.kv_dtype,
                            )


SMALL = Suite(
    tasks=("passkey", "needle", "multiturn", "ppl"),
    policies=("full", "streaming", "balanced", "recall"),
    budgets=("0.25", "0.5"),
    lengths=(1024, 2048),
    ppl_budgets=("256",),
    ppl_lengths=(8192,),
    samples=6,
)
"""40 minutes at most on 2 cores with the default model."""

QUICK = Suite(
    tasks=("passkey", "needle", "ppl"),
    policies=("full", "streaming", "balanced", "recall"),
    budgets=("0.5",),
    lengths=(512,),
    ppl_budgets=("256",),
    ppl_lengths=(1024,),
    samples=3,
)
"""Three minutes at most on a laptop's core with the default model: enough to see that it works."""


def split_list(lists: Iterable[str]) -> list[str]:
    """Split lists at commas and semicolons into the items of one list."""
    items = (item.strip() for text in lists for item in text.replace(";", ",").split(","))
    return list(filter(None, items))

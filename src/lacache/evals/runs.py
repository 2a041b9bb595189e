"""The specification of one run: task, policy, length, budget and protocol."""

from dataclasses import asdict, dataclass
from typing import Literal, final

from lacache.common.records import Record
from lacache.common.settings_text import format_settings
from lacache.common.validation import validate_int, validate_kv_dtype
from lacache.errors import ConfigError
from lacache.evals.provenance import policy_record
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.task import Task
from lacache.policies import Budget, Full, Policy, parse_budget

HARNESS = 4
"""Version of the figures: raised when the same specification would give other ones."""

Prefill = Literal["chunked", "dense"]
FirstToken = Literal["cache", "dense"]

# Far beyond what anybody would wait for; a typing slip must not fill the memory.
MOST_TOKENS = 10_000_000
MOST_SAMPLES = 100_000


@final
@dataclass(frozen=True)
class Protocol:
    """The way a prompt reaches the cache, and the logits of the first answer token.

    Args:
        prefill: "chunked" compacts during prefill, so that no forward attends to more than the
            budget. "dense" prefills the first input with a full cache and compacts it then: the
            prompt, or the context alone where several questions follow, so that no policy knows
            them while it chooses what to keep.
        first_token: where the first answer token comes from: "cache", the compacted one (with a
            dense prefill the prompt's last token then follows after the compaction), or "dense",
            the logits of the dense pass, as in the paper.

    Raises:
        ConfigError: another value, or "dense" as the first token of a chunked prefill.
    """

    prefill: Prefill = "chunked"
    first_token: FirstToken = "cache"

    def __post_init__(self) -> None:
        if self.prefill not in ("chunked", "dense"):
            raise ConfigError(f"prefill={self.prefill!r} must be chunked or dense; try chunked")
        if self.first_token not in ("cache", "dense"):
            raise ConfigError(f"first_token={self.first_token!r} must be cache or dense; try cache")
        if not self.is_dense and self.first_token == "dense":
            raise ConfigError(
                "first_token='dense' needs a dense pass, and a chunked prefill has none; try "
                "first_token='cache' or prefill='dense'"
            )

    @property
    def is_dense(self) -> bool:
        """Whether the first input is prefilled with a full cache."""
        return self.prefill == "dense"

    @property
    def label(self) -> str:
        """The prefill, and with a dense one where the first token is from."""
        if not self.is_dense:
            return "chunked"
        return f"dense, first token from the {self.first_token}" + (
            " pass" if self.first_token == "dense" else ""
        )


CHUNKED = Protocol()


@final
@dataclass(frozen=True)
class RunSpec:
    """The specification of what one run measures, besides the model.

    Args:
        task: questions about contexts, or the perplexity of a text.
        policy: what the cache keeps.
        length: tokens of a prompt with its answer, or of the text.
        budget: tokens per layer ("512"), a share of the prompt or text ("0.25") or bytes
            ("16MiB"); ignored by policies that take none, such as full.
        count: samples; 1 for perplexity.
        seed: of the samples.
        protocol: perplexity is always chunked.
        kv_dtype: what keys and values are stored in, such as "int8"; None is the model's own type.

    Raises:
        ConfigError: a value out of range, or values that do not go together.
    """

    task: Task | Perplexity
    policy: Policy
    length: int
    budget: str = "1.0"
    count: int = 1
    seed: int = 0
    protocol: Protocol = CHUNKED
    kv_dtype: str | None = None

    def __post_init__(self) -> None:
        validate_int("length", self.length, 2, MOST_TOKENS)
        validate_int("count", self.count, 1, MOST_SAMPLES)
        validate_int("seed", self.seed, 0)
        validate_kv_dtype(self.kv_dtype)
        object.__setattr__(self, "budget", str(self.budget))
        parse_budget(self.budget)
        if self.is_perplexity and self.protocol.is_dense:
            raise ConfigError(
                "prefill='dense' cannot be used for perplexity, which scores every token as it "
                "comes; try prefill='chunked'"
            )
        if self.is_perplexity and self.count != 1:
            raise ConfigError(f"count={self.count} of a perplexity run must be 1; try count=1")

    @property
    def parsed_budget(self) -> Budget:
        """The budget as an object."""
        return parse_budget(self.budget)

    @property
    def is_perplexity(self) -> bool:
        """Whether the run measures perplexity instead of answers."""
        return isinstance(self.task, Perplexity)

    @property
    def is_full(self) -> bool:
        """Whether the run has the full cache, which has neither budget nor protocol."""
        return isinstance(self.policy, Full)

    @property
    def tokens(self) -> int:
        """About how many tokens it prefills."""
        return self.length * self.count

    @property
    def task_text(self) -> str:
        """The task and its settings, as on the command line."""
        return format_settings(self.task.name, self.task)

    @property
    def budget_text(self) -> str:
        """The budget; empty for a policy that takes none."""
        return self.budget if self.policy.takes_budget else ""

    @property
    def label(self) -> str:
        """A line for progress and logs."""
        budget = f" at {self.budget}" if self.policy.takes_budget else ""
        dense = ", dense" if self.protocol.is_dense else ""
        kv_dtype = f", {self.kv_dtype}" if self.kv_dtype else ""
        return f"{self.task.name} {self.length:,}: {self.policy}{budget}{dense}{kv_dtype}"

    def record(self) -> Record:
        """Return the part of a record that is known before the run."""
        return {
            "kind": "ppl" if self.is_perplexity else "eval",
            "harness": HARNESS,
            "task": {"name": self.task.name, **asdict(self.task)},
            "length": self.length,
            "count": self.count,
            "seed": self.seed,
            "policy": policy_record(self.policy),
            "budget": self.budget,
            "prefill": self.protocol.prefill,
            "first_token": self.protocol.first_token,
            "kv_dtype": self.kv_dtype,
        }

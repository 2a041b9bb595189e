"""One run of the harness, from its specification to its record."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, final

from lacache.common.records import Record, environment
from lacache.common.validation import validate_int
from lacache.errors import ConfigError
from lacache.evals.answering import Asking, FirstToken, Protocol, ask
from lacache.evals.bootstrap import block_interval, mean_interval
from lacache.evals.dependencies import last_seen
from lacache.evals.methods.full import FullCache
from lacache.evals.methods.method import Method
from lacache.evals.methods.settings import settings_record
from lacache.evals.perplexity import buckets, doubling_edges, perplexity
from lacache.evals.reading import model_record, score_tokens, tokens_sha256
from lacache.evals.specs import format_spec
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.task import Sample, Task
from lacache.evals.watch import Watch
from lacache.evals.weights import weights_sha256
from lacache.models import LoadedModel
from lacache.models.model_info import model_info
from lacache.policies.budget import ParsedBudget, parse_budget

HARNESS = 1
"""Goes up when the same specification would give other figures, so that old runs are not reused."""

_DIGITS = 5
_NLL_DIGITS = 4
_CHUNK = 256
_FIRST_BUCKET = 256


# Far beyond what anybody would wait for; a typing slip must not fill the memory.
MOST_TOKENS = 10_000_000
MOST_SAMPLES = 100_000


@final
@dataclass(frozen=True)
class RunSpec:
    """What one run measures, besides the model.

    Args:
        task: questions about contexts, or the perplexity of a text.
        method: what bounds the cache.
        length: tokens of a prompt with its answer, or of the text.
        budget: tokens per layer ("512"), a share of the prompt or text ("0.25") or bytes
            ("16MiB"). The full cache has none, and keeps "1.0".
        count: samples; 1 for perplexity.
        seed: of the samples.
        protocol: see `Asking`; perplexity is always strict.
        first_token: see `Asking`.

    Raises:
        ConfigError: a value out of range, or values that do not go together.
    """

    task: Task | Perplexity
    method: Method
    length: int
    budget: str = "1.0"
    count: int = 1
    seed: int = 0
    protocol: Protocol = "strict"
    first_token: FirstToken = "cache"

    def __post_init__(self) -> None:
        validate_int("length", self.length, 2, MOST_TOKENS)
        validate_int("count", self.count, 1, MOST_SAMPLES)
        validate_int("seed", self.seed, 0)
        object.__setattr__(self, "budget", str(self.budget))
        parse_budget(self.budget)
        Asking(self.protocol, self.first_token)
        if isinstance(self.task, Perplexity) and self.protocol == "dense":
            raise ConfigError(
                "protocol='dense' cannot be for perplexity, where every token is scored as it is "
                "read; try protocol='strict'"
            )
        if isinstance(self.task, Perplexity) and self.count != 1:
            raise ConfigError(f"count={self.count} of a perplexity run must be 1; try count=1")

    @property
    def parsed_budget(self) -> ParsedBudget:
        """The budget, read."""
        return parse_budget(self.budget)

    @property
    def tokens(self) -> int:
        """About how many tokens it reads."""
        return self.length * self.count

    @property
    def label(self) -> str:
        """For progress and logs."""
        budget = "" if isinstance(self.method, FullCache) else f" at {self.budget}"
        protocol = "" if self.protocol == "strict" else f", {self.protocol}"
        method = format_spec(self.method.name, self.method)
        return f"{self.task.name} {self.length:,}: {method}{budget}{protocol}"

    def record(self) -> Record:
        """The part of a record that is known before the run."""
        return {
            "kind": "ppl" if isinstance(self.task, Perplexity) else "eval",
            "harness": HARNESS,
            "task": settings_record(self.task.name, self.task),
            "length": self.length,
            "count": self.count,
            "seed": self.seed,
            "method": self.method.record(),
            "budget": self.budget,
            "protocol": self.protocol,
            "first_token": self.first_token,
        }


@final
class Bench:
    """A model to run on, with what is the same for many runs: its hash, and the last samples."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        about = model_record(loaded.model, loaded.name)
        self._about = {**about, "weights_sha256": weights_sha256(loaded.model)}
        self._made: tuple[object, Any] = (None, None)
        self._hashes: dict[object, str] = {}

    def key(self, spec: RunSpec) -> str:
        """SHA-256 of the specification and the model: the same key is the same run."""
        model = {name: self._about[name] for name in ("architecture", "dtype", "weights_sha256")}
        inputs = spec.method.inputs_sha256(self._model)
        if inputs:
            model["method_inputs_sha256"] = inputs
        text = json.dumps({**spec.record(), "model": model}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def same_samples(self, spec: RunSpec) -> str:
        """`samples_key` of the record that this specification will have."""
        return samples_key({**spec.record(), "model": self._about})

    def samples_sha256(self, spec: RunSpec) -> str:
        """SHA-256 of all that a run reads and asks, worked out once.

        Raises:
            LaCacheError: the samples cannot be made.
        """
        key = (spec.task, spec.length, spec.count, spec.seed)
        if key not in self._hashes:
            self._hashes[key] = (
                tokens_sha256(self._ids(spec, spec.task))
                if isinstance(spec.task, Perplexity)
                else _samples_sha256(self._samples(spec, spec.task))
            )
        return self._hashes[key]

    def run(self, spec: RunSpec, on_tokens: Callable[[int], None] | None = None) -> Record:
        """Run it.

        Args:
            spec: what to measure.
            on_tokens: called with the number of tokens after each forward.

        Returns:
            The record.

        Raises:
            LaCacheError: anything that makes the run impossible; see `ask` and `score_tokens`.
        """
        begun = time.perf_counter()
        if isinstance(spec.task, Perplexity):
            measured = self._read(spec, spec.task, on_tokens)
        else:
            measured = self._ask(spec, spec.task, on_tokens)
        kind, *settings = spec.record().items()
        return {
            **dict([kind]),
            "key": self.key(spec),
            **dict(settings),
            "method_inputs_sha256": spec.method.inputs_sha256(self._model),
            "model": self._about,
            **measured,
            "seconds": round(time.perf_counter() - begun, 3),
            "environment": environment(),
        }

    def _ask(self, spec: RunSpec, task: Task, on_tokens: Callable[[int], None] | None) -> Record:
        samples = self._samples(spec, task)
        asking = Asking(spec.protocol, spec.first_token)
        asked = [
            ask(
                self._model,
                self._tokenizer,
                spec.method,
                spec.parsed_budget,
                asking,
                task,
                sample,
                on_tokens=on_tokens,
            )
            for sample in samples
        ]
        scores, losses = ([sample[name] for sample in asked] for name in ("score", "nll"))
        capacities = [sample["capacity"] for sample in asked]
        return {
            "samples_sha256": _samples_sha256(samples),
            "score": round(fmean(scores), _DIGITS),
            "score_interval": _rounded(mean_interval(scores)),
            "nll": round(fmean(losses), _DIGITS),
            "nll_interval": _rounded(mean_interval(losses)),
            "capacity": None if None in capacities else fmean(capacities),
            **{
                name: round(fmean(sample[name] for sample in asked), 1)
                for name in ("peak_bytes", "mean_bytes", "full_bytes")
            },
            "samples": asked,
        }

    def _read(
        self, spec: RunSpec, task: Perplexity, on_tokens: Callable[[int], None] | None
    ) -> Record:
        ids = self._ids(spec, task)
        capacity = spec.parsed_budget.capacity(
            bytes_per_token=model_info(self._model).bytes_per_token,
            prompt_tokens=len(ids),
            smallest=1,
        )
        cache = spec.method.open(self._model, capacity=capacity, dense=False)
        limit = None if isinstance(spec.method, FullCache) else capacity
        watch = Watch(self._model, cache, capacity=limit, on_tokens=on_tokens)
        with watch.watching():
            nll = score_tokens(self._model, ids, cache, chunk=_CHUNK)
        low, high = block_interval(nll)
        return {
            "samples_sha256": tokens_sha256(ids),
            "perplexity": round(perplexity(nll), _DIGITS),
            "perplexity_interval": _rounded((perplexity([low]), perplexity([high]))),
            "by_position": [
                [b.start, b.stop, round(b.perplexity, _DIGITS)]
                for b in buckets(nll, doubling_edges(_FIRST_BUCKET, len(ids)))
            ],
            "capacity": limit,
            "peak_bytes": round(watch.peak_bytes),
            "mean_bytes": round(watch.mean_bytes),
            "full_bytes": watch.full_bytes,
            "nll": [round(value, _NLL_DIGITS) for value in nll],
            "last_seen": last_seen(ids),
        }

    def _samples(self, spec: RunSpec, task: Task) -> Sequence[Sample]:
        made: Sequence[Sample] = self._once(
            (task, spec.length, spec.count, spec.seed),
            lambda: task.samples(
                self._tokenizer, length=spec.length, count=spec.count, seed=spec.seed
            ),
        )
        return made

    def _ids(self, spec: RunSpec, task: Perplexity) -> list[int]:
        made: list[int] = self._once(
            (task, spec.length), lambda: task.token_ids(self._tokenizer, length=spec.length)
        )
        return made

    def _once(self, key: object, make: Callable[[], Any]) -> Any:
        """What was made last, if it was made for the same key."""
        if self._made[0] != key:
            self._made = (key, make())
        return self._made[1]


def samples_key(record: Record) -> str:
    """What the samples of a record are made from: where it is the same, they must be the same."""
    names = ("kind", "harness", "task", "length", "count", "seed")
    model = record.get("model")
    # Records of other kinds may have anything there.
    weights = model.get("weights_sha256") if isinstance(model, dict) else None
    return json.dumps([*map(record.get, names), weights], sort_keys=True)


def _samples_sha256(samples: Sequence[Sample]) -> str:
    """SHA-256 of all that is read and asked, as JSON."""
    texts = [
        [s.context, [[q.text, list(q.answers), q.max_new_tokens] for q in s.questions]]
        for s in samples
    ]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(value, _DIGITS) for value in interval]

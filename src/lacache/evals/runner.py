"""Run specifications on one model and make their records."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, final

from lacache.common.records import Record, environment
from lacache.evals.answering import answer_sample
from lacache.evals.dense_pass import DensePasses
from lacache.evals.intervals import block_interval, mean_interval
from lacache.evals.monitor import CacheMonitor, open_monitored
from lacache.evals.perplexity import buckets, doubling_edges, last_seen, perplexity, score_tokens
from lacache.evals.policies import policy_inputs_sha256
from lacache.evals.provenance import kv_bits, model_record, tokens_sha256, weights_sha256
from lacache.evals.runs import RunSpec
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.task import Sample, Task
from lacache.models import LoadedModel

_DIGITS = 5
_NLL_DIGITS = 4
_BITS_DIGITS = 3
_FIRST_BUCKET = 256


@final
class EvalRunner:
    """Run specifications on one model.

    Runs of the same samples, one after the other, share their dense passes: one for each sample
    serves all policies and budgets.

    Args:
        loaded: the model and its tokenizer.
        chunk_size: most tokens in one forward of a perplexity run.
    """

    def __init__(self, loaded: LoadedModel, *, chunk_size: int = 256) -> None:
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        self._chunk_size = chunk_size
        about = model_record(loaded.model, loaded.name)
        self._about = {**about, "weights_sha256": weights_sha256(loaded.model)}
        self._last_inputs: tuple[object, Any] = (None, None)
        self._passes = DensePasses(loaded.model)
        self._hashes: dict[object, str] = {}

    def key(self, spec: RunSpec) -> str:
        """Hash the specification and the model: runs with the same key are the same run."""
        model = {name: self._about[name] for name in ("architecture", "dtype", "weights_sha256")}
        inputs = policy_inputs_sha256(self._model, spec.policy)
        if inputs:
            model["policy_inputs_sha256"] = inputs
        settings = spec.record()
        if spec.kv_dtype is None:
            # So that records made before there was a kv_dtype keep their keys.
            del settings["kv_dtype"]
        text = json.dumps({**settings, "model": model}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def samples_key(self, spec: RunSpec) -> str:
        """Return `samples_key` of the record that this specification will have."""
        return samples_key({**spec.record(), "model": self._about})

    def samples_sha256(self, spec: RunSpec) -> str:
        """Hash everything that a run feeds the model; computed once.

        Raises:
            LaCacheError: the samples cannot be made.
        """
        key = (spec.task, spec.length, spec.count, spec.seed)
        if key not in self._hashes:
            inputs = self._inputs(spec)
            self._hashes[key] = (
                tokens_sha256(inputs) if spec.is_perplexity else _samples_sha256(inputs)
            )
        return self._hashes[key]

    def run(self, spec: RunSpec, on_tokens: Callable[[int], None] | None = None) -> Record:
        """Measure a specification and return its record.

        Args:
            spec: what to measure.
            on_tokens: called with the number of tokens after each forward.

        Raises:
            LaCacheError: the run is impossible; see `answer_sample` and `score_tokens`.
        """
        if isinstance(spec.task, Perplexity):
            return self.run_perplexity(spec, on_tokens)[0]
        begun = time.perf_counter()
        return self._record(spec, self._answer(spec, spec.task, on_tokens), begun)

    def run_perplexity(
        self, spec: RunSpec, on_tokens: Callable[[int], None] | None = None
    ) -> tuple[Record, CacheMonitor]:
        """Measure perplexity; return the record, and the cache as the text has left it.

        Raises:
            LaCacheError: the run is impossible; see `score_tokens`.
        """
        begun = time.perf_counter()
        ids: list[int] = self._inputs(spec)
        monitor = open_monitored(
            self._model,
            spec.policy,
            spec.parsed_budget,
            len(ids),
            dense=False,
            kv_dtype=spec.kv_dtype,
            on_tokens=on_tokens,
        )
        reading = time.perf_counter()
        with monitor.monitoring():
            nll = score_tokens(self._model, ids, monitor.cache, chunk_size=self._chunk_size)
        seconds = time.perf_counter() - reading
        low, high = block_interval(nll)
        measured = {
            "samples_sha256": tokens_sha256(ids),
            "perplexity": round(perplexity(nll), _DIGITS),
            "perplexity_interval": _rounded((perplexity([low]), perplexity([high]))),
            "by_position": [
                [b.start, b.stop, round(b.perplexity, _DIGITS)]
                for b in buckets(nll, doubling_edges(_FIRST_BUCKET, len(ids)))
            ],
            "capacity": monitor.capacity,
            **monitor.sizes(),
            "chunk_size": self._chunk_size,
            "tokens_per_second": round(len(ids) / seconds, 2),
            "nll": [round(value, _NLL_DIGITS) for value in nll],
            "last_seen": last_seen(ids),
        }
        return self._record(spec, measured, begun), monitor

    def _answer(self, spec: RunSpec, task: Task, on_tokens: Callable[[int], None] | None) -> Record:
        samples: Sequence[Sample] = self._inputs(spec)
        answered = [
            answer_sample(
                self._model,
                self._tokenizer,
                spec.policy,
                spec.parsed_budget,
                spec.protocol,
                task,
                sample,
                kv_dtype=spec.kv_dtype,
                on_tokens=on_tokens,
                passes=self._passes,
            )
            for sample in samples
        ]
        scores, losses = ([sample[name] for sample in answered] for name in ("score", "nll"))
        capacities = [sample["capacity"] for sample in answered]
        return {
            "samples_sha256": _samples_sha256(samples),
            "score": round(fmean(scores), _DIGITS),
            "score_interval": _rounded(mean_interval(scores)),
            "nll": round(fmean(losses), _DIGITS),
            "nll_interval": _rounded(mean_interval(losses)),
            "capacity": None if None in capacities else fmean(capacities),
            **{
                name: round(fmean(sample[name] for sample in answered), 1)
                for name in ("peak_bytes", "mean_bytes", "full_bytes")
            },
            "samples": answered,
        }

    def _record(self, spec: RunSpec, measured: Record, begun: float) -> Record:
        settings = spec.record()
        return {
            "kind": settings["kind"],
            "key": self.key(spec),
            **settings,
            "policy_inputs_sha256": policy_inputs_sha256(self._model, spec.policy),
            "model": self._about,
            "kv_bits": round(kv_bits(self._model, spec.kv_dtype), _BITS_DIGITS),
            **measured,
            "seconds": round(time.perf_counter() - begun, 3),
            "environment": environment(),
        }

    def _inputs(self, spec: RunSpec) -> Any:
        """Return the samples, or the token ids of a text; the last ones are kept."""
        key = (spec.task, spec.length, spec.count, spec.seed)
        if self._last_inputs[0] != key:
            made: Any
            if isinstance(spec.task, Perplexity):
                made = spec.task.token_ids(self._tokenizer, length=spec.length)
            else:
                made = spec.task.samples(
                    self._tokenizer, length=spec.length, count=spec.count, seed=spec.seed
                )
            self._last_inputs = (key, made)
            self._passes.clear()
        return self._last_inputs[1]


def samples_key(record: Record) -> str:
    """Return what determines a record's samples: the same key must have the same samples."""
    names = ("kind", "harness", "task", "length", "count", "seed")
    model = record.get("model")
    # Records of other kinds may have anything there.
    weights = model.get("weights_sha256") if isinstance(model, dict) else None
    return json.dumps([*map(record.get, names), weights], sort_keys=True)


def _samples_sha256(samples: Sequence[Sample]) -> str:
    """Hash all contexts, questions and answers as JSON."""
    texts = [
        [s.context, [[q.text, list(q.answers), q.max_new_tokens] for q in s.questions]]
        for s in samples
    ]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(value, _DIGITS) for value in interval]

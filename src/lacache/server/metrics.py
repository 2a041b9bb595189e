"""Prometheus metrics of the server."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lacache.server.completion import Delta, Event, Failed, Finished, Prefilled, Started
from lacache.server.errors import RequestAbortedError, RequestTimeoutError, ShutdownError
from lacache.server.served_model import ServedModel

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


@final
class Metrics:
    """All metrics of one server, in a registry of their own, labelled with the model's name."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.responses = self._counter(
            "lacache_responses", "HTTP responses by route and status.", "route", "status"
        )
        self.prompt_tokens = self._counter(
            "lacache_prompt_tokens", "Prompt tokens that were prefilled.", "model"
        )
        self.cached_prompt_tokens = self._counter(
            "lacache_cached_prompt_tokens",
            "Prompt tokens that a session or the prefix cache had already.",
            "model",
        )
        self.generated_tokens = self._counter(
            "lacache_generated_tokens", "Tokens that were generated.", "model"
        )
        self.finished_sequences = self._counter(
            "lacache_finished_sequences",
            'Sequences that ended, by reason: "stop", "length", "abort" (the client disconnected), '
            '"timeout", "shutdown" or "error".',
            "model",
            "reason",
        )
        self.first_token = self._histogram(
            "lacache_time_to_first_token_seconds", "Time from a request to its first text."
        )
        self.sequence = self._histogram(
            "lacache_sequence_seconds", "Time from a request to the end of its sequence."
        )

    def add_gauges(self, models: Sequence[ServedModel]) -> None:
        """Add gauges that are read from the engines at each scrape."""
        self._registry.register(_Gauges(models))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self._registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(name, help, ["model"], registry=self._registry, buckets=_SECONDS)


@final
class RequestMetrics:
    """Metrics of one request from now on, whether or not its client stays connected.

    Args:
        metrics: of the server.
        model: the name of the model.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._start = time.monotonic()
        self._has_text = False

    def observe(self, event: Event) -> None:
        """Count an event of one of the request's sequences."""
        metrics, model = self._metrics, self._model
        if isinstance(event, Started):
            metrics.cached_prompt_tokens.labels(model).inc(event.num_reused)
        elif isinstance(event, Prefilled):
            metrics.prompt_tokens.labels(model).inc(event.num_tokens)
        elif isinstance(event, Delta) and not self._has_text:
            self._has_text = True
            metrics.first_token.labels(model).observe(self._seconds())
        elif isinstance(event, Finished | Failed):
            reason = event.reason if isinstance(event, Finished) else _reason(event.error)
            metrics.generated_tokens.labels(model).inc(event.num_new)
            metrics.finished_sequences.labels(model, reason).inc()
            metrics.sequence.labels(model).observe(self._seconds())

    def _seconds(self) -> float:
        return time.monotonic() - self._start


_REASONS: dict[type[Exception], str] = {
    RequestAbortedError: "abort",
    RequestTimeoutError: "timeout",
    ShutdownError: "shutdown",
}


def _reason(error: Exception) -> str:
    """Return why a completion failed, for a label."""
    return _REASONS.get(type(error), "error")


_GAUGES: dict[str, tuple[str, Callable[[ServedModel], int]]] = {
    "batch_slots": ("Sequences that can run at the same time.", lambda s: s.thread.num_slots),
    "running_sequences": ("Sequences in a batch slot.", lambda s: s.thread.num_running),
    "waiting_sequences": ("Sequences in the queue.", lambda s: s.thread.num_waiting),
    "sequence_bytes": (
        "KV cache of one sequence, constant.",
        lambda s: s.inspector.layout.bytes_per_sequence,
    ),
    "reserved_bytes": ("KV cache of all batch slots, constant.", lambda s: s.thread.num_bytes),
    "held_bytes": ("KV cache of the tokens held now.", lambda s: s.thread.held_bytes),
    "prefix_cache_bytes": ("Prefix cache in memory.", lambda s: s.prefix_cache.num_bytes),
}


@final
class _Gauges(Collector):
    """Current values of all engines."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield every gauge with its current value for each model."""
        for name, (help, value) in _GAUGES.items():
            family = GaugeMetricFamily(f"lacache_{name}", help, labels=["model"])
            for each in self._models:
                family.add_metric([each.name], value(each))
            yield family

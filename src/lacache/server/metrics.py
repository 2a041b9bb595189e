"""Counts and times for Prometheus."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lacache.server.job import Began, Event, Failed, Finished, HasRead, Piece
from lacache.server.served import Served

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


@final
class Metrics:
    """In a registry of their own; what is told bears the name of the model."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.answers = Counter(
            "lacache_answers",
            "HTTP answers by route and status.",
            ["route", "status"],
            registry=self._registry,
        )
        self.read = self._counter("lacache_prompt_tokens", "Tokens of prompts that were read.")
        self.reused = self._counter(
            "lacache_reused_tokens", "Tokens of prompts that were known and not read again."
        )
        self.new = self._counter("lacache_new_tokens", "Tokens that were written.")
        self.texts = Counter(
            "lacache_texts",
            "Texts that ended: by a stop, by their length, or cut.",
            ["model", "reason"],
            registry=self._registry,
        )
        self.first = self._histogram(
            "lacache_first_piece_seconds", "From a request to the first piece of its text."
        )
        self.whole = self._histogram("lacache_text_seconds", "From a request to its text's end.")

    def watch(self, served: Sequence[Served]) -> None:
        """Tell where these stand whenever anybody asks."""
        self._registry.register(_Levels(served))

    def request(self, model: str) -> "Clock":
        """For one request that has come now."""
        return Clock(self, model)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, ["model"], registry=self._registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, ["model"], registry=self._registry, buckets=_SECONDS)


@final
class Clock:
    """Counts what is told of one request, whether its client listens or not."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._began = time.monotonic()
        self._is_first = True

    def tell(self, event: Event) -> None:
        """An event of one of its texts."""
        metrics, model = self._metrics, self._model
        if isinstance(event, Began):
            metrics.reused.labels(model).inc(event.num_reused)
        elif isinstance(event, HasRead):
            metrics.read.labels(model).inc(event.num_tokens)
        elif isinstance(event, Piece) and self._is_first:
            self._is_first = False
            metrics.first.labels(model).observe(self._seconds())
        elif isinstance(event, Finished | Failed):
            reason = event.reason if isinstance(event, Finished) else "cut"
            metrics.new.labels(model).inc(event.num_new)
            metrics.texts.labels(model, reason).inc()
            metrics.whole.labels(model).observe(self._seconds())

    def _seconds(self) -> float:
        return time.monotonic() - self._began


@final
class _Levels(Collector):
    """Numbers that are looked up when they are asked for."""

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = served

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family after the other."""
        numbers: dict[str, tuple[str, Callable[[Served], int]]] = {
            "rows": ("Texts that may be written side by side.", lambda s: s.thread.num_rows),
            "rows_in_use": ("Texts that have a row.", lambda s: s.thread.num_writing),
            "waiting": ("Texts that wait for a row.", lambda s: s.thread.num_waiting),
            "row_bytes": ("Of one text, at any length.", lambda s: s.holding.row_bytes),
            "known_bytes": ("Of known beginnings in memory.", lambda s: s.prefixes.num_bytes),
        }
        for name, (about, number) in numbers.items():
            family = GaugeMetricFamily(f"lacache_{name}", about, labels=["model"])
            for each in self._served:
                family.add_metric([each.name], number(each))
            yield family

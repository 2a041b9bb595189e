"""Successive halving in bounded time: many candidates over little text, few over more."""

import math
from collections.abc import Callable, Sequence
from typing import final

from lacache.common.records import Record
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.campaign import Outcome
from lacache.evals.methods.full import FullCache
from lacache.evals.methods.method import Method
from lacache.evals.methods.streaming import StreamingMethod
from lacache.evals.runs import RunSpec
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tasks.stretch_needles import StretchNeedles
from lacache.evals.tuning.found import Found, Recommended, recommend
from lacache.evals.tuning.objectives import Figures, Stretch, against, figures
from lacache.evals.tuning.pareto import front, ranked
from lacache.evals.tuning.settings import Settings
from lacache.evals.tuning.split import FEWEST_STRETCHES, Part

GUESS = math.log(9e6)
"""Nats that a number of seven digits costs on average who does not know it: no guess is better."""

FULL = FullCache()
STREAMING = StreamingMethod()

_LEAST = 3
_FINALISTS = 6
_WINNERS = 7
_FIRST_SHARE = 0.4
_COMPARED_SHARE = 0.65
_OVERHEAD = 0.95
"""Of the time, for the runs themselves: samples and files take a little besides."""

_COMPARED, _HELD_OUT = 0, 1

_Read = dict[Method, list[Stretch]]
Measure = Callable[[RunSpec], Outcome]


@final
class Search:
    """One search. Its time is that of the records, so runs made before count like new ones.

    Args:
        settings: capacity, length, time.
        parts: the one to compare on and the one held out.
        candidates: besides StreamingLLM, the most promising first.
        measure: makes or finds the record of a run.
        on_step: called before each stretch with what is done and the seconds spent so far.
    """

    def __init__(
        self,
        settings: Settings,
        parts: tuple[Part, Part],
        candidates: Sequence[Method],
        measure: Measure,
        on_step: Callable[[str, float], None] = lambda told, seconds: None,
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._candidates = tuple(dict.fromkeys([STREAMING, *candidates]))
        self._measure = measure
        self._on_step = on_step
        self._limit = settings.minutes * 60 * _OVERHEAD
        self._seconds = 0.0
        self._slowest = 0.0
        self._slowest_of: dict[Method, float] = {}
        self._slowest_run: dict[object, float] = {}
        self._read_of: tuple[_Read, _Read] = ({}, {})
        self._failed: dict[Method, str] = {}

    def run(self) -> Found:
        """Compare, choose, and measure what was chosen on what is held out.

        Raises:
            ConfigError: the time does not suffice for the least search, which reads two stretches
                of each part, or there is nothing to compare StreamingLLM with.
            ModelError: the model finds no needles even with a full cache.
            InputError: StreamingLLM or the full cache could not be measured.
        """
        try:
            return self._search()
        except _OutOfTime:
            raise self._too_little() from None

    def _search(self) -> Found:
        self._validate_signal()
        tried = self._first_round()
        finalists = self._halve(tried)
        points = {method: self._figures(method).point for method in finalists}
        best = [finalists[i] for i in front(list(points.values()))]
        read = self._read_of[_COMPARED]
        ratios = {m: against(read[m], read[STREAMING]).ratio_interval[0] for m in best}
        recommended = recommend({method: points[method] for method in best}, ratios)
        self._confirm(recommended, [method for method in finalists if method in best])
        return Found(
            compared=self._read_of[_COMPARED],
            finalists=tuple(finalists),
            front=tuple(best),
            recommended=recommended,
            held_out=self._read_of[_HELD_OUT],
            failed=self._failed,
            untried=tuple(m for m in self._candidates if m not in {*tried, *self._failed}),
            seconds=self._seconds,
        )

    def _validate_signal(self) -> None:
        """Where the full cache does not know the answers, no loss tells caches apart."""
        self._on_step("the full cache", self._seconds)
        try:
            loss = float(self._needles(FULL, _COMPARED, 0)["nll"])
        except _RunFailed as error:
            raise InputError(str(error)) from error
        if loss > GUESS / 2:
            raise ModelError(
                f"the model does not find needles in stretches of {self._settings.length} tokens "
                f"with a full cache: an answer costs {loss:.1f} nats, a blind guess {GUESS:.1f}, "
                "so its answers do not tell caches apart; try a shorter --length, or measure "
                f"perplexity alone with lacache eval --tasks ppl:text={self._parts[0].text}"
            )

    def _first_round(self) -> list[Method]:
        """One stretch for as many candidates as the time allows."""
        tried: list[Method] = []
        for number, method in enumerate(self._candidates):
            ends = self._seconds + self._slowest
            most = min(_FIRST_SHARE * self._limit, self._limit - self._reserved(_LEAST))
            if len(tried) >= _LEAST and ends > most:
                break
            told = f"comparing candidate {number + 1} of {len(self._candidates)}"
            try:
                worked = self._read(told, method, _COMPARED)
            except _OutOfTime:
                if len(tried) < _LEAST:
                    raise
                break
            if worked:
                tried.append(method)
            if method == STREAMING:
                self._validate_time()
        if len(tried) < 2:
            reasons = "; ".join(self._failed.values()) or "no other method works"
            raise ConfigError(
                f"nothing is left to compare StreamingLLM with ({reasons}); try a larger --budget "
                "or other --methods"
            )
        return tried

    def _validate_time(self) -> None:
        """Whether the least search fits."""
        if self._needed() > self._limit:
            raise self._too_little()

    def _needed(self) -> float:
        """Time of the least search in all: what was read, and what it still has to read."""
        left = 0
        # Held out, the full cache is read besides.
        for read, methods in zip(self._read_of, (_LEAST, _LEAST + 1), strict=True):
            counts = sorted((min(len(of), FEWEST_STRETCHES) for of in read.values()), reverse=True)
            left += FEWEST_STRETCHES * methods - sum(counts[:methods])
        return self._seconds + left * (self._slowest or 2 * self._slowest_run.get(None, 0.0))

    def _too_little(self) -> ConfigError:
        minutes = self._settings.minutes
        enough = math.ceil(max(self._needed(), 1.2 * self._limit) / _OVERHEAD / 6) / 10
        return ConfigError(
            f"minutes={minutes:g} are too little time to choose: "
            f"{FEWEST_STRETCHES} stretches of {self._settings.length} tokens to compare on and as "
            f"many held out are the least, with {_LEAST} methods, which take about {enough:g} "
            f"minutes; try --minutes {enough:g}, which goes on from here, or a shorter --length"
        )

    def _reserved(self, more: int) -> float:
        """Time for so many more stretches, and for winners and the full cache held out."""
        return self._slowest * (more + FEWEST_STRETCHES * (_LEAST + 2))

    def _halve(self, tried: list[Method]) -> list[Method]:
        """More stretches for the better half, until few are left; these, the best first."""
        left = tried
        until = _COMPARED_SHARE * self._limit
        while True:
            left = self._best_half(left)
            if self._columns(_COMPARED) < FEWEST_STRETCHES:
                left = self._affordable(left)
            rounds = 1 + math.ceil(math.log2(max(1.0, len(left) / _FINALISTS)))
            round_end = self._seconds + (until - self._seconds) / rounds
            before = self._columns(_COMPARED)
            left = self._read_until(left, _COMPARED, round_end)
            if len(left) <= _FINALISTS or self._columns(_COMPARED) == before:
                return self._in_order(left)

    def _affordable(self, methods: list[Method]) -> list[Method]:
        """As many of the best as there is time for to read another stretch with."""
        left = list(methods)
        while len(left) > _LEAST and self._ends(left) > self._limit - self._reserved(0):
            left.remove(next(m for m in reversed(left) if m != STREAMING))
        return left

    def _confirm(self, recommended: Recommended, winners: list[Method]) -> None:
        """Winners, StreamingLLM and the full cache on the held-out part."""
        best = recommended
        left = list(dict.fromkeys([STREAMING, best.both, best.recall, best.text, FULL]))
        for method in winners:
            more = [*left, method]
            ends = self._seconds + FEWEST_STRETCHES * (self._ends(more) - self._seconds)
            if method not in left and len(left) < _WINNERS and ends <= self._limit:
                left = more
        self._read_until(left, _HELD_OUT, self._limit)

    def _read_until(self, methods: list[Method], part: int, until: float) -> list[Method]:
        """Stretch after stretch with all methods, the fewest at least; those it worked with.

        Raises:
            _OutOfTime: the time has ended before the fewest were read.
        """
        left = methods
        while self._columns(part) < FEWEST_STRETCHES or self._fits(left, part, until):
            before = self._columns(part)
            try:
                left = self._read_all(left, part)
            except _OutOfTime:
                if before < FEWEST_STRETCHES:
                    raise
                # What only some have read compares with nothing.
                read = self._read_of[part]
                left = [method for method in left if method in read]
                for method in left:
                    del read[method][before:]
                break
        return left

    def _best_half(self, methods: list[Method]) -> list[Method]:
        """The better half, but at least as many as may stay to the end; the best first."""
        ordered = self._in_order(methods)
        kept = ordered[: max(_FINALISTS, math.ceil(len(ordered) / 2))]
        # What everything is measured against stays.
        return kept if STREAMING in kept else [*kept[:-1], STREAMING]

    def _in_order(self, methods: list[Method]) -> list[Method]:
        """The best first; all have read the same."""
        return [methods[i] for i in ranked([self._figures(method).point for method in methods])]

    def _figures(self, method: Method) -> Figures:
        return figures(self._read_of[_COMPARED][method])

    def _columns(self, part: int) -> int:
        """Stretches that were read of a part by all that are still in it."""
        return len(self._read_of[part].get(STREAMING, ()))

    def _fits(self, methods: list[Method], part: int, until: float) -> bool:
        """Whether there is text and time for one more stretch with each method."""
        there = len(self._parts[part].stretches(self._settings.length))
        return self._columns(part) < there and self._ends(methods) <= until

    def _ends(self, methods: list[Method]) -> float:
        """Time when each has read one more stretch, if none takes longer than ever before."""
        return self._seconds + sum(self._slowest_of.get(m, self._slowest) for m in methods)

    def _read_all(self, methods: list[Method], part: int) -> list[Method]:
        """One more stretch with each method; those with which that worked."""
        number = self._columns(part) + 1
        told = f"{self._parts[part].name}, stretch {number}, {len(methods)} methods"
        return [method for method in methods if self._read(told, method, part)]

    def _read(self, told: str, method: Method, part: int) -> bool:
        """One more stretch with a method; whether that worked."""
        self._on_step(told, self._seconds)
        read = self._read_of[part]
        number = len(read.get(method, ()))
        of_part = self._parts[part]
        start = of_part.stretches(self._settings.length)[number]
        try:
            # What is read does not depend on a seed, so its run is the same with any.
            text = self._record(Perplexity(of_part.text, start), method, 0)
            stretch = Stretch(text, self._needles(method, part, number))
        except _RunFailed as error:
            if method in (STREAMING, FULL):
                raise InputError(str(error)) from error
            self._failed[method] = str(error)
            read.pop(method, None)
            return False
        read.setdefault(method, []).append(stretch)
        slowest = max(self._slowest_of.get(method, 0.0), stretch.seconds)
        self._slowest_of[method] = slowest
        self._slowest = max(self._slowest, slowest)
        return True

    def _needles(self, method: Method, part: int, number: int) -> Record:
        of_part = self._parts[part]
        task = StretchNeedles(of_part.text, *of_part.characters, number)
        return self._record(task, method, of_part.seed)

    def _record(self, task: Perplexity | StretchNeedles, method: Method, seed: int) -> Record:
        budget = "1.0" if method == FULL else str(self._settings.capacity)
        spec = RunSpec(task, method, self._settings.length, budget, seed=seed)
        kind = type(task)
        known = ((method, kind), kind, None)
        expected = next((self._slowest_run[k] for k in known if k in self._slowest_run), 0.0)
        if self._seconds + expected > self._limit:
            raise _OutOfTime
        outcome = self._measure(spec)
        if outcome.record is None:
            raise _RunFailed(f"{spec.label} could not be measured: {outcome.error}")
        seconds = float(outcome.record["seconds"])
        self._seconds += seconds
        for key in known:
            self._slowest_run[key] = max(seconds, self._slowest_run.get(key, 0.0))
        return outcome.record


@final
class _OutOfTime(Exception):
    """The next run would likely end after the time."""


@final
class _RunFailed(Exception):
    """A run without a record; says why."""

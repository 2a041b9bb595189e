"""Successive halving in bounded time: many candidates on little text, few on more."""

import math
from collections.abc import Callable, Sequence
from typing import final

from lacache.common.records import Record
from lacache.errors import ConfigError, InputError, ModelError
from lacache.evals.record_file import Outcome
from lacache.evals.runs import RunSpec
from lacache.evals.tasks.document_needles import DocumentNeedles
from lacache.evals.tasks.ppl import Perplexity
from lacache.evals.tuning.objectives import Excerpt, Point, against, figures, pareto_front, ranked
from lacache.evals.tuning.result import FULL, STREAMING, Found, Settings, recommend
from lacache.evals.tuning.split import FEWEST_EXCERPTS, Part
from lacache.policies import Policy

GUESS = math.log(9e6)
"""Nats that a number of seven digits costs a blind guess on average."""

_LEAST = 3
_FINALISTS = 6
_WINNERS = 7
_FIRST_SHARE = 0.4
_COMPARED_SHARE = 0.65
_OVERHEAD = 0.95
"""Of the time, for the runs themselves: samples and files take a little besides."""

_COMPARED, _HELD_OUT = 0, 1

Measure = Callable[[RunSpec], Outcome]


@final
class Search:
    """One search. Its time is that of the records, so runs made before count like new ones.

    Args:
        settings: capacity, length, time.
        parts: the one to compare on and the one held out.
        candidates: besides StreamingLLM, the most promising first.
        measure: makes or finds the record of a run.
        on_step: called before each excerpt with its description and the seconds spent so far.
    """

    def __init__(
        self,
        settings: Settings,
        parts: tuple[Part, Part],
        candidates: Sequence[Policy],
        measure: Measure,
        on_step: Callable[[str, float], None] = lambda step, seconds: None,
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._candidates = tuple(dict.fromkeys([STREAMING, *candidates]))
        self._measure = measure
        self._on_step = on_step
        self._limit = settings.minutes * 60 * _OVERHEAD
        self._seconds = 0.0
        self._slowest = 0.0
        self._slowest_of: dict[Policy, float] = {}
        self._slowest_run: dict[object, float] = {}
        self._measured: tuple[dict[Policy, list[Excerpt]], ...] = ({}, {})
        self._failed: dict[Policy, str] = {}

    def run(self) -> Found:
        """Compare, choose, and measure what was chosen on what is held out.

        Raises:
            ConfigError: the time does not suffice for the least search, which has two excerpts
                of each part, or there is nothing to compare StreamingLLM with.
            ModelError: the model finds no needles even with a full cache.
            InputError: StreamingLLM or the full cache could not be measured.
        """
        compared, held_out = self._measured
        try:
            self._validate_signal()
            tried = self._first_round()
            finalists = self._halve(tried)
            points = {policy: self._point(policy) for policy in finalists}
            front = [finalists[i] for i in pareto_front(list(points.values()))]
            ratios = {p: against(compared[p], compared[STREAMING]).ratio_interval[0] for p in front}
            recommended = recommend({policy: points[policy] for policy in front}, ratios)
            self._confirm(recommended, [policy for policy in finalists if policy in front])
        except _OutOfTime:
            raise self._too_little() from None
        return Found(
            compared=compared,
            finalists=tuple(finalists),
            front=tuple(front),
            recommended=recommended,
            held_out=held_out,
            failed=self._failed,
            untried=tuple(p for p in self._candidates if p not in {*tried, *self._failed}),
            seconds=self._seconds,
        )

    def _validate_signal(self) -> None:
        """Check that the full cache answers right; else no loss distinguishes caches."""
        self._on_step("the full cache", self._seconds)
        try:
            loss = float(self._needles(FULL, _COMPARED, 0)["nll"])
        except _RunFailed as error:
            raise InputError(str(error)) from error
        if loss > GUESS / 2:
            raise ModelError(
                f"the model does not find needles in excerpts of {self._settings.length} tokens "
                f"with a full cache: an answer costs {loss:.1f} nats, a blind guess {GUESS:.1f}, "
                "so its answers do not distinguish caches; try a shorter --length, or measure "
                f"perplexity alone with lacache eval --tasks ppl:text={self._parts[0].text}"
            )

    def _first_round(self) -> list[Policy]:
        """Measure one excerpt with as many candidates as the time allows; return those."""
        tried: list[Policy] = []
        for number, policy in enumerate(self._candidates):
            ends = self._seconds + self._slowest
            most = min(_FIRST_SHARE * self._limit, self._limit - self._reserved(_LEAST))
            if len(tried) >= _LEAST and ends > most:
                break
            step = f"comparing candidate {number + 1} of {len(self._candidates)}"
            try:
                if self._measure_next(step, policy, _COMPARED):
                    tried.append(policy)
            except _OutOfTime:
                if len(tried) < _LEAST:
                    raise
                break
            if policy == STREAMING and self._needed() > self._limit:
                raise self._too_little()
        if len(tried) < 2:
            reasons = "; ".join(self._failed.values()) or "no other policy works"
            raise ConfigError(
                f"nothing is left to compare StreamingLLM with ({reasons}); try a larger --budget "
                "or other values of --policy"
            )
        return tried

    def _needed(self) -> float:
        """Return the time of the least search: what is measured, and what it has to measure."""
        left = 0
        # Held out, the full cache is measured besides.
        for measured, policies in zip(self._measured, (_LEAST, _LEAST + 1), strict=True):
            counts = sorted(
                (min(len(of), FEWEST_EXCERPTS) for of in measured.values()), reverse=True
            )
            left += FEWEST_EXCERPTS * policies - sum(counts[:policies])
        return self._seconds + left * (self._slowest or 2 * self._slowest_run.get(None, 0.0))

    def _too_little(self) -> ConfigError:
        minutes = self._settings.minutes
        enough = math.ceil(max(self._needed(), 1.2 * self._limit) / _OVERHEAD / 6) / 10
        return ConfigError(
            f"minutes={minutes:g} are too little time to choose: "
            f"{FEWEST_EXCERPTS} excerpts of {self._settings.length} tokens to compare on and as "
            f"many held out are the least, with {_LEAST} policies, which take about {enough:g} "
            f"minutes; try --minutes {enough:g}, which continues from here, or a shorter --length"
        )

    def _reserved(self, more: int) -> float:
        """Return the time for `more` excerpts, and for winners and the full cache held out."""
        return self._slowest * (more + FEWEST_EXCERPTS * (_LEAST + 2))

    def _halve(self, tried: list[Policy]) -> list[Policy]:
        """Measure more excerpts with the better half, until few are left; the best first."""
        left = tried
        until = _COMPARED_SHARE * self._limit
        while True:
            left = self._best_half(left)
            if self._columns(_COMPARED) < FEWEST_EXCERPTS:
                left = self._affordable(left)
            rounds = 1 + math.ceil(math.log2(max(1.0, len(left) / _FINALISTS)))
            round_end = self._seconds + (until - self._seconds) / rounds
            before = self._columns(_COMPARED)
            left = self._measure_until(left, _COMPARED, round_end)
            if len(left) <= _FINALISTS or self._columns(_COMPARED) == before:
                return self._in_order(left)

    def _affordable(self, policies: list[Policy]) -> list[Policy]:
        """Return as many of the best as there is time for another excerpt with."""
        left = list(policies)
        while len(left) > _LEAST and self._ends(left) > self._limit - self._reserved(0):
            left.remove(next(p for p in reversed(left) if p != STREAMING))
        return left

    def _confirm(self, best: dict[str, Policy], winners: list[Policy]) -> None:
        """Measure winners, StreamingLLM and the full cache on the held-out part."""
        chosen = (best[goal] for goal in ("both", "recall", "text"))
        left = list(dict.fromkeys([STREAMING, *chosen, FULL]))
        for policy in winners:
            more = [*left, policy]
            ends = self._seconds + FEWEST_EXCERPTS * (self._ends(more) - self._seconds)
            if policy not in left and len(left) < _WINNERS and ends <= self._limit:
                left = more
        self._measure_until(left, _HELD_OUT, self._limit)

    def _measure_until(self, policies: list[Policy], part: int, until: float) -> list[Policy]:
        """Measure excerpt after excerpt, the fewest at least; return the policies that worked.

        Raises:
            _OutOfTime: the time has ended before the fewest were measured.
        """
        left = policies
        while self._columns(part) < FEWEST_EXCERPTS or self._fits(left, part, until):
            before = self._columns(part)
            step = f"{self._parts[part].name}, excerpt {before + 1}, {len(left)} policies"
            try:
                left = [policy for policy in left if self._measure_next(step, policy, part)]
            except _OutOfTime:
                if before < FEWEST_EXCERPTS:
                    raise
                # What only some have measured compares with nothing.
                measured = self._measured[part]
                left = [policy for policy in left if policy in measured]
                for policy in left:
                    del measured[policy][before:]
                break
        return left

    def _best_half(self, policies: list[Policy]) -> list[Policy]:
        """Return the better half, but at least as many as may be finalists; the best first."""
        ordered = self._in_order(policies)
        kept = ordered[: max(_FINALISTS, math.ceil(len(ordered) / 2))]
        # What everything is measured against stays.
        return kept if STREAMING in kept else [*kept[:-1], STREAMING]

    def _in_order(self, policies: list[Policy]) -> list[Policy]:
        """Return the best first; all have measured the same."""
        return [policies[i] for i in ranked([self._point(policy) for policy in policies])]

    def _point(self, policy: Policy) -> Point:
        return figures(self._measured[_COMPARED][policy]).point

    def _columns(self, part: int) -> int:
        """Return the excerpts of a part that all policies still in it have measured."""
        return len(self._measured[part].get(STREAMING, ()))

    def _fits(self, policies: list[Policy], part: int, until: float) -> bool:
        """Return whether there is text and time for one more excerpt with each policy."""
        available = len(self._parts[part].excerpts(self._settings.length))
        return self._columns(part) < available and self._ends(policies) <= until

    def _ends(self, policies: list[Policy]) -> float:
        """Return when each has measured one more excerpt, if none takes longer than before."""
        return self._seconds + sum(self._slowest_of.get(p, self._slowest) for p in policies)

    def _measure_next(self, step: str, policy: Policy, part: int) -> bool:
        """Measure a policy's next excerpt of a part; return whether that worked."""
        self._on_step(step, self._seconds)
        measured = self._measured[part]
        number = len(measured.get(policy, ()))
        of_part = self._parts[part]
        start = of_part.excerpts(self._settings.length)[number]
        try:
            # Perplexity does not depend on a seed, so its run is the same with any.
            text = self._record(Perplexity(of_part.text, start), policy, 0)
            excerpt = Excerpt(text, self._needles(policy, part, number))
        except _RunFailed as error:
            if policy in (STREAMING, FULL):
                raise InputError(str(error)) from error
            self._failed[policy] = str(error)
            measured.pop(policy, None)
            return False
        measured.setdefault(policy, []).append(excerpt)
        slowest = max(self._slowest_of.get(policy, 0.0), excerpt.seconds)
        self._slowest_of[policy] = slowest
        self._slowest = max(self._slowest, slowest)
        return True

    def _needles(self, policy: Policy, part: int, number: int) -> Record:
        of_part = self._parts[part]
        task = DocumentNeedles(of_part.text, *of_part.characters, number)
        return self._record(task, policy, of_part.seed)

    def _record(self, task: Perplexity | DocumentNeedles, policy: Policy, seed: int) -> Record:
        budget = "1.0" if policy == FULL else str(self._settings.capacity)
        spec = RunSpec(task, policy, self._settings.length, budget, seed=seed)
        kind = type(task)
        known = ((policy, kind), kind, None)
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
    """A run has no record; the message has the reason."""

"""Sequences of many lengths in the rows of one runner, and what each must equal: itself alone."""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lacache import LaCache
from lacache.engine.runner import Runner
from lacache.models.decoder import cache_argument
from lacache.policies import Ladder, RetrievalHeads
from lacache.policies.ladder import LadderSchedule
from tests.cache.slow_cache import slow_logits
from tests.cache.tiny_models import VOCAB
from tests.policies.sized import Sized, bind_to

TOLERANCE = 1e-4


@dataclass
class Sequence:
    text: list[int] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)
    """After so many tokens [V]."""


def new_runner(model: Any, sized: Sized, *args: Any, **options: Any) -> Runner:
    """A runner of a policy with its budget; the rest as for Runner."""
    return Runner(model, bind_to(model, sized), *args, **options)


class Ragged:
    """Rows that join, idle, leave and fork; their tokens are random."""

    def __init__(self, runner: Runner, seed: int) -> None:
        self.runner = runner
        self.random = random.Random(seed)
        self.rows = [Sequence() for _ in runner.cache.sequences]
        self.all = list(self.rows)

    def read(self, row: int, num_tokens: int) -> None:
        """Tokens in one chunk, whole or cut at its first compaction."""
        if self.random.random() < 0.5:
            num_tokens = min(num_tokens, self.runner.cache.sequences[row].room())
        num_tokens = self.runner.cache.chunk_length(row, num_tokens)
        tokens = [self._token() for _ in range(num_tokens)]
        sequence = self.rows[row]
        before = len(sequence.text)
        sequence.text += tokens
        if self.random.random() < 0.5:
            sequence.logits[len(sequence.text)] = self.runner.prefill(row, torch.tensor(tokens))
            return
        found = self.runner.prefill_all_logits(row, torch.tensor(tokens))
        sequence.logits |= {before + number: of_one for number, of_one in enumerate(found, 1)}

    def step(self, active: list[int]) -> None:
        tokens = [self._token() for _ in self.rows]
        found = self.runner.decode(tokens, active)
        for row in active:
            sequence = self.rows[row]
            sequence.text.append(tokens[row])
            sequence.logits[len(sequence.text)] = found[row].clone()

    def clear(self, row: int) -> None:
        self.runner.cache.clear(row)
        self._start(row)

    def fork(self, row: int, target: int) -> None:
        self.runner.cache.fork(row, target)
        self._start(target)
        self.rows[target].text = list(self.rows[row].text)

    def random_call(self) -> None:
        """One of the above; mostly those that add tokens."""
        kind = self.random.choice(["read", "read", "step", "step", "step", "clear", "fork"])
        row, target = self.random.sample(range(len(self.rows)), 2)
        if kind == "read":
            self.read(row, self.random.randint(1, 20))
        elif kind == "step":
            active = self.random.sample(range(len(self.rows)), self.random.randint(1, 3))
            for _ in range(self.random.randint(1, 12)):
                self.step(active)
        elif kind == "clear":
            self.clear(row)
        else:
            self.fork(row, target)

    def check(self, model: Any, sized: Sized) -> None:
        """Compare every sequence that ever was with itself alone."""
        longest = max(len(sequence.text) for sequence in self.all)
        # What comes later changes nothing before.
        ids = torch.full((len(self.all), longest), 2)
        for row, sequence in enumerate(self.all):
            ids[row, : len(sequence.text)] = torch.tensor(sequence.text, dtype=torch.long)
        expected = twin_logits(model, ids, sized)
        for row, sequence in enumerate(self.all):
            for num_seen, logits in sequence.logits.items():
                wanted = expected[row, num_seen - 1]
                torch.testing.assert_close(logits, wanted, atol=TOLERANCE, rtol=0)

    def _start(self, row: int) -> None:
        self.rows[row] = Sequence()
        self.all.append(self.rows[row])

    def _token(self) -> int:
        return self.random.randrange(2, VOCAB)


def twin_logits(model: Any, ids: Tensor, sized: Sized) -> Tensor:
    """Logits [B, Q, V] from the slow twin, or from LaCache for policies that it does not know."""
    groups = bind_to(model, sized).groups
    schedule = groups[0].schedule
    if len(groups) == 1 and isinstance(schedule, LadderSchedule):
        return slow_logits(model, ids, in_slots(schedule))
    if not isinstance(sized[1], RetrievalHeads):
        return slow_logits(model, ids, sized)
    with torch.no_grad():
        cache = LaCache(model, *sized)
        logits: Tensor = model(ids, **cache_argument(model, cache)).logits
    return logits


def in_slots(schedule: LadderSchedule) -> Sized:
    """The ladder of a schedule, every setting in slots, as the slow twin takes it."""
    geometry = schedule.geometry
    window = geometry.freed + 1
    ladder = Ladder(
        span=geometry.span,
        overlap=geometry.overlap,
        sinks=schedule.sinks,
        positions=schedule.positions,
        recent=schedule.recent,
        evict_batch=schedule.evict_batch,
        geometry=geometry.kind,
        unit=schedule.unit,
        window_layers=tuple(n for n, p in enumerate(schedule.patterns) if p == window),
    )
    return schedule.capacity, ladder

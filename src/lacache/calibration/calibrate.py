"""Measure the importance of a long history for every KV head, by probes and without gradients.

Heads stand in for each other, so the cost of a window depends on which other heads have one. Hence
rounds: measure every head that still sees all tokens, give windows to the cheapest share of them,
measure again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.calibration.emulation import Emulation
from lacache.calibration.probes import KINDS, Probe, make_probes
from lacache.calibration.store import Journal
from lacache.common.validation import validate_int
from lacache.errors import ConfigError, ModelError
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import HeadProfile

LEAST_GAP = 0.1
"""Least cost of windows in all heads, in nats per answer, for a kind of probe to count."""

Pair = tuple[int, int]
"""A layer and one of its KV heads."""

Costs = Callable[[frozenset[Pair], Sequence[Pair]], list[float]]
"""A function of `(full, pairs)`: it returns the cost when the heads `full` see all tokens, and
then, for each of `pairs`, when that head has a window as well."""

_DIGITS = 5
# A probe is one forward, with attention from all tokens to all.
_MOST_TOKENS = 100_000
_MOST_PROBES = 1000


@final
@dataclass(frozen=True)
class Settings:
    """Settings of a calibration, besides the model and the document.

    Args:
        window: recent tokens that a streaming head sees.
        sinks: attention sinks that it sees besides.
        length: tokens of a probe.
        per_kind: number of probes of each kind.
        share: share of the remaining heads that get a window after each round of pruning.
        seed: of the random parts of the probes.

    Raises:
        ConfigError: a value is out of range.
    """

    window: int = 64
    sinks: int = 4
    length: int = 600
    per_kind: int = 2
    share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        validate_int("window", self.window, 1)
        validate_int("sinks", self.sinks, 0)
        validate_int("per_kind", self.per_kind, 1, _MOST_PROBES)
        validate_int("seed", self.seed, 0)
        validate_int("length", self.length, 1, _MOST_TOKENS)
        # A probe must be much longer than what a streaming head sees.
        least = 2 * (self.window + self.sinks)
        if self.length < least:
            raise ConfigError(
                f"length={self.length} must be at least {least} = 2 × (window {self.window} + "
                f"sinks {self.sinks}); try length={least}"
            )
        list(round_sizes(1, self.share))

    def num_steps(self, num_heads: Sequence[int]) -> int:
        """Return the number of forwards, most of them through some of the layers only."""
        probes = self.per_kind * len(KINDS)
        return probes * (2 + sum(1 + size for size in round_sizes(sum(num_heads), self.share)))


def calibrate(
    model: Any,
    tokenizer: Any,
    haystack: str,
    *,
    name: str,
    journal: Path,
    settings: Settings | None = None,
    on_step: Callable[[int], None] | None = None,
) -> HeadProfile:
    """Measure the head profile of a model.

    The loss of the answers in probes is measured with windows emulated by masks, first for one
    head at a time, then in rounds that give windows to more and more heads. Losses are shares of
    what windows in all heads cost, averaged over the kinds of probes.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        haystack: running text to hide probes in.
        name: display name of the model.
        journal: a file for measurements, with which an interrupted calibration resumes. The
            caller deletes it once the profile is saved.
        settings: of the probes; None for the defaults.
        on_step: called with the number of forwards done since the last call; the sum of all calls
            is `settings.num_steps(...)`.

    Raises:
        InputError: the haystack is too short, or the journal cannot be written.
        ModelError: windows cost the model nothing in any kind of probe.
        UnsupportedModelError: layers or attention that take no mask.
    """
    settings = settings or Settings()
    probes = make_probes(
        tokenizer,
        haystack,
        length=settings.length,
        per_kind=settings.per_kind,
        seed=settings.seed,
    )
    model_fingerprint = fingerprint(model)
    measurements = Journal(
        journal,
        {
            "fingerprint": model_fingerprint,
            "dtype": str(next(model.parameters()).dtype),
            "probes_sha256": sha256(repr(probes).encode()).hexdigest(),
            **asdict(settings),
        },
    )
    emulation = Emulation(model, window=settings.window, sinks=settings.sinks)
    measurer = _Measurer(emulation, probes, measurements, on_step or (lambda _steps: None))
    pairs = [(layer, head) for layer, n in enumerate(emulation.num_heads) for head in range(n)]
    ranking = prune(pairs, measurer.costs, share=settings.share)
    return HeadProfile(
        fingerprint=model_fingerprint,
        model=name,
        window=settings.window,
        sinks=settings.sinks,
        importance=tuple(
            tuple(round(ranking.importance[layer, head], _DIGITS) for head in range(n))
            for layer, n in enumerate(emulation.num_heads)
        ),
        order=tuple(ranking.order),
        loss_left=tuple((count, round(cost, _DIGITS)) for count, cost in ranking.loss_left),
    )


@final
class _Measurer:
    """Measure losses of probes as shares of what windows in all heads cost."""

    def __init__(
        self,
        emulation: Emulation,
        probes: Sequence[Probe],
        journal: Journal,
        on_step: Callable[[int], None],
    ) -> None:
        self._emulation = emulation
        self._journal = journal
        self._on_step = on_step
        self._probes = probes
        nowhere = self._keep(frozenset())
        # The loss with all tokens in all heads is 0 of the scale, windows in all heads are 1.
        ends = [self._losses(number, ~nowhere, [nowhere]) for number in range(len(probes))]
        self._full = [full for full, _ in ends]
        gaps = {
            kind: fmean(w - f for p, (f, w) in zip(probes, ends, strict=True) if p.kind == kind)
            for kind in KINDS
        }
        self._gaps = {kind: gap for kind, gap in gaps.items() if gap >= LEAST_GAP}
        if not self._gaps:
            raise ModelError(
                "windows in all layers cost this model nothing in any kind of probe "
                f"({', '.join(f'{kind} {gap:.2f}' for kind, gap in gaps.items())} nats), so it "
                "makes no use of distant tokens and needs no profile; use one policy for all "
                "layers"
            )

    def costs(self, full: frozenset[Pair], pairs: Sequence[Pair]) -> list[float]:
        """Measure costs, as `Costs` defines them."""
        keep = self._keep(full)
        changes = [self._keep(full - {pair}) for pair in pairs]
        by_kind: dict[str, list[list[float]]] = {kind: [] for kind in self._gaps}
        for number, probe in enumerate(self._probes):
            if probe.kind in self._gaps:
                losses = self._losses(number, keep, changes)
                gap = self._gaps[probe.kind]
                by_kind[probe.kind].append([(loss - self._full[number]) / gap for loss in losses])
            else:
                self._on_step(1 + len(changes))
        means = [[fmean(column) for column in zip(*rows, strict=True)] for rows in by_kind.values()]
        return [fmean(column) for column in zip(*means, strict=True)]

    def _losses(self, number: int, keep: Tensor, changes: Sequence[Tensor]) -> list[float]:
        """Return the nats per answer of a probe with `keep`, then with each of `changes`."""
        bits = "".join(map(str, keep.int().flatten().tolist()))
        key = f"{number} {bits} {len(changes)}"
        is_known = key in self._journal
        losses = self._journal.get(key, lambda: self._measure(self._probes[number], keep, changes))
        if is_known:
            self._on_step(len(losses))
        return losses

    def _measure(self, probe: Probe, keep: Tensor, changes: Sequence[Tensor]) -> list[float]:
        positions, targets = torch.tensor(probe.positions()), torch.tensor(probe.targets())
        losses = []
        for logits in self._emulation.variants(probe.token_ids, positions, keep, changes):
            loss = cross_entropy(logits, targets.to(logits.device), reduction="sum")
            losses.append(float(loss) / len(probe.answers))
            self._on_step(1)
        return losses

    def _keep(self, pairs: frozenset[Pair]) -> Tensor:
        heads = self._emulation.num_heads
        keep = torch.zeros(len(heads), max(heads), dtype=torch.bool)
        for layer, head in pairs:
            keep[layer, head] = True
        return keep


@final
class Ranking(NamedTuple):
    """The result of pruning; `HeadProfile` documents each field."""

    importance: dict[Pair, float]
    order: list[Pair]
    loss_left: list[tuple[int, float]]


def round_sizes(count: int, share: float) -> Iterator[int]:
    """Yield how many heads still see all tokens, round by round.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share} must lie above 0 and be at most 1; try share=0.25")
    while count:
        yield count
        count -= max(1, int(share * count))


def prune(pairs: Sequence[Pair], costs: Costs, *, share: float) -> Ranking:
    """Order pairs by the importance of a long history for them.

    Args:
        pairs: every pair of the model.
        costs: measures the cost of windows.
        share: share of the remaining pairs that get a window after each round; one pair at least.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    kept = list(pairs)
    importance: dict[Pair, float] = {}
    windowed: list[Pair] = []
    loss_left: list[tuple[int, float]] = []
    sizes = [*round_sizes(len(kept), share), 0]
    for size, next_size in pairwise(sizes):
        base, *measured = costs(frozenset(kept), kept)
        cost = dict(zip(kept, measured, strict=True))
        if not importance:
            importance = {pair: cost[pair] - base for pair in kept}
        loss_left.append((size, base))
        # Ties go by depth, so that the same measurements give the same order.
        cheapest = sorted(kept, key=lambda pair: (cost[pair], pair))[: size - next_size]
        windowed += cheapest
        kept = [pair for pair in kept if pair not in cheapest]
    # With windows in all heads the loss is 1 by definition of the scale.
    return Ranking(importance, windowed[::-1], [(0, 1.0), *loss_left[::-1]])

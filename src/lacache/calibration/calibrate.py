"""Find the need for history of every KV head of a model, by probes and without gradients."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.calibration.emulation import Emulation
from lacache.calibration.journal import Journal
from lacache.calibration.probes import KINDS, Probe, make_probes
from lacache.calibration.pruning import Pair, prune, round_sizes
from lacache.common.validation import validate_int
from lacache.errors import ConfigError, ModelError
from lacache.models.fingerprint import fingerprint
from lacache.policies.head_profile import HeadProfile

LEAST_GAP = 0.1
"""Nats per answer that windows everywhere must cost, for a kind of probe to say anything."""

_DIGITS = 5


# A probe is read at once, with attention from all to all.
_MOST_TOKENS = 100_000
_MOST_PROBES = 1000


@final
@dataclass(frozen=True)
class Settings:
    """What a calibration depends on, besides the model and the text.

    Args:
        window: newest tokens that a head without history sees.
        sinks: first tokens that it sees besides.
        length: tokens of a probe.
        per_kind: probes of each kind.
        share: of the heads left, how many get a window after each round.
        seed: of what the probes draw by chance.

    Raises:
        ConfigError: a value that cannot work.
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
        # A probe must be longer than what a windowed head sees by a good deal.
        least = 2 * (self.window + self.sinks)
        if self.length < least:
            raise ConfigError(
                f"length={self.length} must be at least {least} = 2 × (window {self.window} + "
                f"sinks {self.sinks}); try length={least}"
            )
        list(round_sizes(1, self.share))

    def num_steps(self, num_heads: Sequence[int]) -> int:
        """How many forwards a calibration takes, most of them through a part of the layers."""
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
    """Measure a model's profile.

    The loss of the answers in probes is measured with windows emulated by masks, first for one
    head at a time, then in rounds that give windows to more and more heads. Losses count as
    shares of what windows everywhere cost, which is averaged over the kinds of probes.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        haystack: running text to hide probes in.
        name: the model's name, for people.
        journal: a file for what was measured, from which an interrupted calibration goes on. It
            stays, for the caller to delete once the profile is safe.
        settings: of the probes; None for the defaults.
        on_step: called with the number of forwards done since the last call; they add up to
            `settings.num_steps(...)`.

    Raises:
        InputError: the text is too short, or the journal cannot be written.
        ModelError: the model answers no kind of probe, so that nothing can be told.
        UnsupportedModelError: layers or attention that cannot be masked.
    """
    settings = settings or Settings()
    probes = make_probes(
        tokenizer,
        haystack,
        length=settings.length,
        per_kind=settings.per_kind,
        seed=settings.seed,
    )
    print_of_model = fingerprint(model)
    texts = sha256(repr(probes).encode()).hexdigest()
    weight = next(model.parameters())
    notes = Journal(
        journal,
        {
            "fingerprint": print_of_model,
            "dtype": str(weight.dtype),
            "probes_sha256": texts,
            **asdict(settings),
        },
    )
    emulation = Emulation(model, window=settings.window, sinks=settings.sinks)
    measurer = _Measurer(emulation, probes, notes, on_step or (lambda _steps: None))
    pairs = [(layer, head) for layer, n in enumerate(emulation.num_heads) for head in range(n)]
    ranking = prune(pairs, measurer.costs, share=settings.share)
    profile = HeadProfile(
        fingerprint=print_of_model,
        model=name,
        window=settings.window,
        sinks=settings.sinks,
        need=tuple(
            tuple(round(ranking.need[layer, head], _DIGITS) for head in range(n))
            for layer, n in enumerate(emulation.num_heads)
        ),
        order=tuple(ranking.order),
        left=tuple((count, round(cost, _DIGITS)) for count, cost in ranking.left),
    )
    return profile


@final
class _Measurer:
    """Losses of probes as shares of what windows everywhere cost."""

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
        # Everything is what a probe's loss is compared with, windows everywhere are the scale.
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
                "makes no use of what is far back and needs no profile; use one policy for all "
                "layers"
            )

    def costs(self, keeping: frozenset[Pair], pairs: Sequence[Pair]) -> list[float]:
        """See `lacache.calibration.pruning.Costs`."""
        keep = self._keep(keeping)
        changes = [self._keep(keeping - {pair}) for pair in pairs]
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
        """Nats per answer of a probe with `keep`, then with each of `changes`."""
        bits = "".join(map(str, keep.int().flatten().tolist()))
        key = f"{number} {bits} {len(changes)}"
        is_known = key in self._journal
        losses = self._journal.get(key, lambda: self._measure(self._probes[number], keep, changes))
        if is_known:
            self._on_step(len(losses))
        return losses

    def _measure(self, probe: Probe, keep: Tensor, changes: Sequence[Tensor]) -> list[float]:
        rows, targets = torch.tensor(probe.rows()), torch.tensor(probe.targets())
        losses = []
        for logits in self._emulation.variants(probe.token_ids, rows, keep, changes):
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

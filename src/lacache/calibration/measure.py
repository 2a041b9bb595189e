"""Measure a head profile: the importance of a long history for every KV head, by a few gradients.

The loss is that of the answers in probes, with windows emulated. Losses are shares of what windows
in all heads cost, averaged over the kinds of probes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.calibration.attribution import POINTS, Pair, attributions, rank
from lacache.calibration.emulation import Emulation, evaluating
from lacache.calibration.haystack import sample_haystack
from lacache.calibration.probes import KINDS, Probe, least_length, make_probes, validate_length
from lacache.calibration.store import Journal
from lacache.common.packages import quiet_imports
from lacache.common.validation import validate_int
from lacache.errors import ConfigError, ModelError, NoDistantTokensError
from lacache.models.fingerprint import fingerprint
from lacache.models.model_info import model_info
from lacache.policies.head_profile import HeadProfile
from lacache.version import __version__

with quiet_imports():
    import transformers

LEAST_GAP = 0.1
"""Least cost of windows in all heads, in nats per answer, for a kind of probe to count."""
LEAST_SHARE = 0.01
"""The same as a share of the loss with windows: .36 to .97 in SmolLM2-135M, .003 and less in
models with random weights, whose windows cost a little by chance."""

_DIGITS = 5
_LENGTH = 400
# Tokenizers of bytes need about 600 tokens.
_MOST_DEFAULT_LENGTH = 2000
# A probe is one forward, with attention from all tokens to all.
_MOST_TOKENS = 100_000
_MOST_PROBES = 1000
# Shares of the heads that keep all tokens, for `HeadProfile.loss_left`.
_SHARES = (0.033, 0.067, 0.1, 0.16, 0.25)
# Duration of a gradient in forwards: forward, once more by layer, and backward.
_GRADIENT_STEPS = 4
# First words of the journal's keys.
_LOSS, _GRADIENT = "loss", "gradient"


@final
@dataclass(frozen=True)
class Settings:
    """Settings of a calibration, besides the model and the document.

    Args:
        window: recent tokens that a streaming head sees.
        sinks: attention sinks that it sees besides.
        length: tokens of a probe; None for 400, more where the tokenizer needs more, up to 2,000,
            or the model's trained length if that is less.
        per_kind: number of probes of each kind.
        seed: of the random parts of the probes.

    Raises:
        ConfigError: a value is out of range.
    """

    window: int = 64
    sinks: int = 4
    length: int | None = None
    per_kind: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        validate_int("window", self.window, 1)
        validate_int("sinks", self.sinks, 0)
        validate_int("per_kind", self.per_kind, 1, _MOST_PROBES)
        validate_int("seed", self.seed, 0)
        if self.length is None:
            return
        validate_int("length", self.length, 1, _MOST_TOKENS)
        if self.length < self._least:
            raise ConfigError(
                f"length={self.length} must be at least {self._least} = 2 × (window {self.window} "
                f"+ sinks {self.sinks}); try length={self._least}"
            )

    @property
    def _least(self) -> int:
        """A probe is much longer than what a streaming head sees."""
        return 2 * (self.window + self.sinks)

    def resolved_length(self, tokenizer: Any, trained_length: int) -> int:
        """Return the tokens of a probe with a tokenizer, for a model trained on such a length.

        Raises:
            ConfigError: the tokenizer needs more, or the model was trained on less.
        """
        for_facts = least_length(tokenizer, per_kind=self.per_kind, seed=self.seed)
        least = max(self._least, for_facts)
        if trained_length < least:
            remedy = (
                "use policy='streaming', which needs no head profile"
                if trained_length < for_facts
                else "try a smaller window"
            )
            raise ConfigError(
                f"the model was trained on {trained_length} tokens, and a calibration needs "
                f"{least} with this tokenizer, window={self.window} and sinks={self.sinks}; "
                f"{remedy}"
            )
        length = self.length
        if length is None:
            length = max(_LENGTH, self._least, min(least, _MOST_DEFAULT_LENGTH))
            length = min(length, trained_length)
        validate_length(length, for_facts)
        if length > trained_length:
            raise ConfigError(
                f"length={length} must be at most {trained_length}, the length that the model was "
                f"trained on; try length={trained_length}"
            )
        return length

    def num_steps(self, num_heads: Sequence[int]) -> int:
        """Return the work in forwards; a gradient counts as four."""
        forwards = 2 + len(_counts(sum(num_heads)))
        return self.per_kind * len(KINDS) * (forwards + _GRADIENT_STEPS * len(POINTS))


def measure_profile(
    model: Any,
    tokenizer: Any,
    haystack: str | None = None,
    *,
    name: str,
    journal: Path,
    settings: Settings | None = None,
    on_sample: Callable[[], None] | None = None,
    on_start: Callable[[float], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> HeadProfile:
    """Measure the head profile of a model, by attribution.

    The model's weights are frozen while it runs, and it is left as it was.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        haystack: running text to hide probes in; None samples it from the model.
        name: display name of the model.
        journal: a file for measurements, with which an interrupted calibration resumes. The
            caller deletes it once the profile is saved.
        settings: of the probes; None for the defaults.
        on_sample: called before text is sampled from the model, which takes a while.
        on_start: called once, with the seconds that the measurements will take, about.
        on_step: called with the work done since the last call, in forwards; the sum of all calls
            is `settings.num_steps(...)`.

    Raises:
        ConfigError: probes of such a length leave no room for text, or are longer than what the
            model was trained on.
        InputError: the haystack is too short, or the journal cannot be written.
        ModelError: the model's losses are not finite, or no text can be sampled from it.
        NoDistantTokensError: windows cost the model nothing in any kind of probe.
        UnsupportedModelError: attention that cannot be given windows.
        UnsupportedOperationError: an attention implementation that cannot.
    """
    settings = settings or Settings()
    length = settings.resolved_length(tokenizer, model_info(model).trained_length)
    emulation = Emulation(model, window=settings.window, sinks=settings.sinks)
    model_fingerprint = fingerprint(model)
    measurements = Journal(
        journal,
        {
            "fingerprint": model_fingerprint,
            "dtype": str(next(model.parameters()).dtype),
            "attention": model.config.get_text_config(decoder=True)._attn_implementation,
            "haystack": None if haystack is None else sha256(haystack.encode()).hexdigest(),
            "versions": [__version__, str(torch.__version__), transformers.__version__],
            **asdict(settings),
            "length": length,
        },
    )
    if haystack is None:

        def sample() -> list[str]:
            if on_sample is not None:
                on_sample()
            with evaluating(model):
                return [sample_haystack(model, tokenizer, num_tokens=length, seed=settings.seed)]

        # Kept in the journal, since other threads or kernels would sample another text.
        (haystack,) = measurements.get("haystack", sample)
    probes = make_probes(
        tokenizer,
        haystack,
        length=length,
        per_kind=settings.per_kind,
        seed=settings.seed,
    )
    if on_start is not None:
        steps_left = settings.num_steps(emulation.num_heads) - _num_steps(measurements)
        on_start(steps_left * _seconds_of_a_forward(emulation, probes[0]))
    measurer = _Measurer(emulation, probes, measurements, on_step or (lambda _steps: None))
    measurer.measure_gaps()
    importance = measurer.importance()
    order = rank(importance, emulation.num_heads)
    # A full cache is 0 of the scale, and windows in all heads are 1.
    left = [(count, measurer.loss_left(order[:count])) for count in _counts(len(order))]
    return HeadProfile(
        fingerprint=model_fingerprint,
        model=name,
        window=settings.window,
        sinks=settings.sinks,
        importance=tuple(
            tuple(round(value, _DIGITS) for value in row[:n])
            for row, n in zip(importance.tolist(), emulation.num_heads, strict=True)
        ),
        order=tuple(order),
        loss_left=(
            (0, 1.0),
            *((count, round(loss, _DIGITS)) for count, loss in left),
            (len(order), 0.0),
        ),
    )


def _num_steps(journal: Journal) -> int:
    """Return the work in the journal, in forwards."""
    steps = {_LOSS: 1, _GRADIENT: _GRADIENT_STEPS}
    return sum(steps.get(key.partition(" ")[0], 0) for key in journal)


def _seconds_of_a_forward(emulation: Emulation, probe: Probe) -> float:
    start = time.perf_counter()
    emulation.logits(probe.token_ids, torch.tensor(probe.positions()), emulation.coefficients(0))
    return time.perf_counter() - start


def _counts(num_heads: int) -> list[int]:
    """Return how many heads keep all tokens where the loss is measured, without the ends."""
    return sorted({round(share * num_heads) for share in _SHARES} - {0, num_heads})


def _finite(value: Tensor) -> float:
    if not value.isfinite():
        raise ModelError(
            f"a loss of the model, or a derivative of it, is {float(value)} and must be finite; "
            "load the model with dtype='float32' and calibrate it again"
        )
    return float(value)


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
        # Of their content, so that a journal never serves other probes.
        self._names = [sha256(repr(probe).encode()).hexdigest()[:16] for probe in probes]
        self._at_best: list[float] = []
        self._gaps: dict[str, float] = {}

    def measure_gaps(self) -> None:
        """Measure what windows in all heads cost in each kind of probe. Call this first.

        Raises:
            NoDistantTokensError: they cost nothing in any kind.
        """
        ends = [
            (
                self._loss(number, self._emulation.coefficients(1)),
                self._loss(number, self._emulation.coefficients(0)),
            )
            for number in range(len(self._probes))
        ]
        self._at_best = [full for full, _ in ends]
        pairs = list(zip(self._probes, ends, strict=True))
        gaps = {kind: fmean(w - f for p, (f, w) in pairs if p.kind == kind) for kind in KINDS}
        windowed = {kind: fmean(w for p, (_, w) in pairs if p.kind == kind) for kind in KINDS}
        self._gaps = {
            kind: gap
            for kind, gap in gaps.items()
            if gap >= max(LEAST_GAP, LEAST_SHARE * windowed[kind])
        }
        if not self._gaps:
            raise NoDistantTokensError(
                "windows in all layers cost this model next to nothing in any kind of probe "
                f"({', '.join(f'{kind} {gap:.2f}' for kind, gap in gaps.items())} nats), so it "
                "makes no use of distant tokens and needs no profile; use one policy for all "
                "layers"
            )

    def importance(self) -> Tensor:
        """Return the attributions [L, H]."""
        return self._mean(
            lambda probe: attributions(lambda point: self._gradient(probe, point)),
            steps=_GRADIENT_STEPS * len(POINTS),
        )

    def loss_left(self, pairs: Sequence[Pair]) -> float:
        """Return the loss with windows in all heads but `pairs`."""
        mixing = self._emulation.coefficients(0)
        for pair in pairs:
            mixing[pair] = 1.0
        return float(
            self._mean(
                lambda probe: torch.tensor(self._loss(probe, mixing) - self._at_best[probe]),
                steps=1,
            )
        )

    def _mean(self, measure: Callable[[int], Tensor], *, steps: int) -> Tensor:
        """Average shares over the kinds that count, from nats of each probe."""
        shares: dict[str, list[Tensor]] = {kind: [] for kind in self._gaps}
        for number, probe in enumerate(self._probes):
            if probe.kind in self._gaps:
                shares[probe.kind].append(measure(number) / self._gaps[probe.kind])
            else:
                self._on_step(steps)
        return torch.stack([torch.stack(of_kind).mean(0) for of_kind in shares.values()]).mean(0)

    def _loss(self, number: int, mixing: Tensor) -> float:
        """Return the nats per answer of a probe, where all coefficients are 0 or 1."""
        probe = self._probes[number]

        def measure() -> list[float]:
            positions, targets = torch.tensor(probe.positions()), torch.tensor(probe.targets())
            logits = self._emulation.logits(probe.token_ids, positions, mixing)
            loss = cross_entropy(logits, targets.to(logits.device), reduction="sum")
            return [_finite(loss) / len(probe.answers)]

        keep = "".join(str(int(value)) for value in mixing.flatten().tolist())
        loss: float = self._journal.get(f"{_LOSS} {self._names[number]} {keep}", measure)[0]
        self._on_step(1)
        return loss

    def _gradient(self, number: int, point: float) -> Tensor:
        """Return the derivatives [L, H] of the nats per answer of a probe."""
        probe = self._probes[number]
        mixing = self._emulation.coefficients(point)

        def measure() -> list[float]:
            positions, targets = torch.tensor(probe.positions()), torch.tensor(probe.targets())
            _, gradient = self._emulation.gradient(probe.token_ids, positions, targets, mixing)
            scaled = gradient * (len(targets) / len(probe.answers))
            return [_finite(value) for value in scaled.flatten()]

        values = self._journal.get(f"{_GRADIENT} {self._names[number]} {point}", measure)
        self._on_step(_GRADIENT_STEPS)
        return torch.tensor(values).view_as(mixing)

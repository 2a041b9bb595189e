"""The sampler: from logits to the next token, and to its log probability."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lacache.engine.sampling import Sampling
from lacache.errors import ConfigError, InputError, ModelError

_CPU = torch.device("cpu")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SamplerState:
    """State of a sampler, as tensors on the CPU that must not be written to.

    Args:
        generator: state of the random numbers, uint8 [n]; None when greedy.
        seen: the distinct tokens of prompt and output, int64 [tokens], ascending.

    Raises:
        InputError: a tensor of another kind.
    """

    generator: Tensor | None
    seen: Tensor

    def __post_init__(self) -> None:
        if self.generator is not None:
            _validate_vector("generator", self.generator, torch.uint8)
        _validate_vector("seen", self.seen, torch.int64)


def _validate_vector(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype != dtype or value.ndim != 1 or value.device != _CPU:
        raise InputError(
            f"{name} of a sampler's state is {value.dtype} {tuple(value.shape)} on {value.device}, "
            f"and {dtype} with one dimension on the CPU is needed; take it from Sampler.state()"
        )


@final
class Sampler:
    """Samples the tokens of one sequence; holds its random numbers and its distinct tokens.

    Random numbers are its own: one float64 per token, from a generator on the CPU, looked up in
    the cumulated float32 probabilities on the CPU. So equal seeds give equal tokens on any device
    and in any batch, as far as the model gives equal logits. Memory is bounded by the vocabulary,
    at any length of the sequence.
    """

    def __init__(self, sampling: Sampling | None = None) -> None:
        sampling = Sampling() if sampling is None else sampling
        if not isinstance(sampling, Sampling):
            raise ConfigError(
                f"sampling={sampling!r} must be a Sampling; try Sampling(temperature=0.7)"
            )
        self.sampling = sampling
        """Its settings."""
        self._seen = torch.empty(0, dtype=torch.int64)
        self._new: int | None = None
        self._generator: torch.Generator | None = None
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            penalty = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
            self._processors.append(penalty)
        if sampling.temperature == 0:
            return
        self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            self._processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            self._processors.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(_CPU)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def see(self, tokens: Tensor) -> None:
        """Add the tokens of a prompt, int64 of any shape; `choose` adds its own."""
        tokens = torch.cat((self._seen, tokens.flatten().to(_CPU, torch.int64)))
        self._seen = torch.unique(tokens)
        self._new = None

    def choose(self, logits: Tensor) -> int:
        """Return the next token, from the last token's logits [1, V].

        Raises:
            ModelError: logits that are not all numbers, unless greedy.
        """
        if self._generator is None:
            token = int(self._scores(logits).argmax())
        else:
            token = _draw(self.probabilities(logits)[0].to(_CPU), self._generator)
        self._new = None if bool((self._seen == token).any()) else token
        if self._new is not None:
            self._seen = torch.cat((self._seen, torch.tensor([token])))
        return token

    def unsee_last(self) -> None:
        """Remove the last chosen token from the sequence."""
        if self._new is not None:
            self._seen = self._seen[self._seen != self._new]
            self._new = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the float32 probabilities [1, V] of sampling, from logits [1, V]."""
        return self._scores(logits).softmax(dim=-1)

    def state(self) -> SamplerState:
        """Return its state, for a snapshot; later choices do not change it."""
        generator = None if self._generator is None else self._generator.get_state()
        return SamplerState(generator=generator, seen=self._seen.sort().values)

    def restore(self, state: SamplerState) -> None:
        """Continue from a state; without a generator in it, the random numbers are unchanged.

        So a sequence continues differently with a new seed: `Sampler(sampling)` with that seed,
        then `restore(SamplerState(generator=None, seen=state.seen))`.

        Raises:
            InputError: the generator's state is not one of torch's.
        """
        if self._generator is not None and state.generator is not None:
            try:
                self._generator.set_state(state.generator)
            except RuntimeError as error:
                raise InputError(
                    f"the {len(state.generator)} bytes of the random numbers' state are not what "
                    f"torch {torch.__version__} writes ({error}); take it from Sampler.state()"
                ) from error
        self._seen = state.seen

    def fork(self) -> "Sampler":
        """Return an independent sampler in the same state."""
        other = Sampler(self.sampling)
        other.restore(self.state())
        return other

    def _scores(self, logits: Tensor) -> Tensor:
        # Only the penalty uses tokens, and neither their number nor their order.
        penalised = self.sampling.repetition_penalty != 1
        seen: Any = (self._seen if penalised else self._seen[:0])[None].to(logits.device)
        return self._processors(seen, logits.float())


def _draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """Sample from probabilities [V]: the first whose cumulated one passes a random number.

    torch.multinomial draws a random number for every token of the vocabulary, which takes many
    times as long.
    """
    cumulated = probabilities.cumsum(dim=0, dtype=torch.float64)
    if not bool(cumulated[-1] > 0):
        raise ModelError(
            "the model's logits are not all numbers, so no token can be drawn; try dtype=float32"
        )
    passed = torch.rand((), dtype=torch.float64, generator=generator) * cumulated[-1]
    return int(torch.searchsorted(cumulated, passed, right=True))


@final
@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities at one token, in nats, before temperature, filters and penalties.

    Args:
        logprob: log probability of the token.
        top: the likeliest tokens and their log probabilities, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token: int, num_top: int) -> TokenLogprobs:
    """Return the log probabilities at a token, from the logits [V] it was sampled from."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(float(logprobs[token]), tuple(pairs))

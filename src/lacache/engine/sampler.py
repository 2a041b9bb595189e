"""Choose the next token from logits."""

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
    """Where a sampler stands, as plain tensors on the CPU that nobody writes to.

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
    """Chooses the tokens of one text; holds the random numbers and the distinct tokens so far.

    One sampler serves one row, and its random numbers are its own: one float64 per token, from a
    generator on the CPU, looked up in the cumulated float32 probabilities on the CPU. So the same
    seed gives the same text on any device and whatever else is in the batch, as far as the model
    gives the same logits. Memory is bounded by the vocabulary, at any length of the text.
    """

    def __init__(self, sampling: Sampling | None = None) -> None:
        sampling = Sampling() if sampling is None else sampling
        if not isinstance(sampling, Sampling):
            raise ConfigError(
                f"sampling={sampling!r} must be a Sampling; try Sampling(temperature=0.7)"
            )
        self.sampling = sampling
        """How it chooses."""
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
        """Note the tokens of a prompt, int64 of any shape; `choose` notes its own."""
        tokens = torch.cat((self._seen, tokens.flatten().to(_CPU, torch.int64)))
        self._seen = torch.unique(tokens)
        self._new = None

    def choose(self, logits: Tensor) -> int:
        """The next token from the last token's logits [1, V].

        Raises:
            ModelError: logits that are no numbers, unless greedy.
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
        """The token that was chosen last is no part of the text after all."""
        if self._new is not None:
            self._seen = self._seen[self._seen != self._new]
            self._new = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """What tokens are drawn by [1, V] unless greedy, float32, from logits [1, V]."""
        return self._scores(logits).softmax(dim=-1)

    def state(self) -> SamplerState:
        """Where it stands, for a snapshot; later choices don't change it."""
        generator = None if self._generator is None else self._generator.get_state()
        return SamplerState(generator=generator, seen=self._seen.sort().values)

    def restore(self, state: SamplerState) -> None:
        """Go on from a state; without a generator in it, the random numbers stay as they are.

        So a text goes on in another way with a new seed: `Sampler(sampling)` with that seed, then
        `restore(SamplerState(generator=None, seen=state.seen))`.

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
        """Another sampler that stands at the same place and goes on by itself."""
        other = Sampler(self.sampling)
        other.restore(self.state())
        return other

    def _scores(self, logits: Tensor) -> Tensor:
        # Only the penalty looks at tokens: at which there were, not how often or in what order.
        penalised = self.sampling.repetition_penalty != 1
        seen: Any = (self._seen if penalised else self._seen[:0])[None].to(logits.device)
        return self._processors(seen, logits.float())


def _draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """A token by probabilities [V]: the first whose cumulated probability passes a random number.

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
    """Of one chosen token, in nats, before temperature, filters and penalties.

    Args:
        logprob: of the token.
        top: the likeliest tokens and theirs, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token: int, num_top: int) -> TokenLogprobs:
    """From logits [V] by which a token was chosen."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, len(logprobs)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(float(logprobs[token]), tuple(pairs))

"""Reading a text with a cache: what the model makes of each token given what the cache holds."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.cache import HookedCache, LaCache
from lacache.common.records import Record, environment
from lacache.engine.cached_writer import CachedWriter
from lacache.engine.engine import Engine
from lacache.engine.sampling import Sampling
from lacache.engine.writer import Writer
from lacache.errors import InputError, ModelError
from lacache.evals.perplexity import Bucket, perplexity, running
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.policies import POLICIES, Policy, kept_after
from lacache.policies.schedule import UNBOUNDED
from lacache.policies.timetable import Timetable

PROTOCOL = "chunked"
"""Compactions run while the text is read, so memory is bounded at all times."""

_DIGITS = 5
_WINDOW = 512


@final
class Held(NamedTuple):
    """What a cache held at one moment: tokens seen, tokens per layer, bytes over all layers."""

    num_seen: int
    num_cached: int
    num_bytes: int


@final
@dataclass(frozen=True)
class Reading:
    """One text read once with one cache."""

    policy: Policy
    token_ids: tuple[int, ...]
    chunk: int
    nll: tuple[float, ...]
    """Negative log-likelihood in nats of the tokens 1, 2, ..., each given what the cache held."""
    held: tuple[Held, ...]
    """What the cache held after each forward."""
    compactions: int
    kept: tuple[tuple[int, ...], ...]
    """Distinct lists of the original numbers of the tokens held at the end."""
    layer_to_kept: tuple[int, ...]
    """Which of these lists each layer with a growing cache has."""
    seconds: float

    @property
    def mean_bytes(self) -> float:
        """Bytes held, averaged over the tokens read."""
        starts = [0, *(held.num_seen for held in self.held)]
        weighted = sum(
            (held.num_seen - start) * held.num_bytes
            for start, held in zip(starts, self.held, strict=False)
        )
        return weighted / len(self.token_ids)

    def record(self, *, label: str, model: Record, text_name: str) -> Record:
        """This reading as a record; see benchmarks/README.md for what each number means."""
        tokens = len(self.token_ids)
        return {
            "kind": "reading",
            "label": label,
            "policy": policy_record(self.policy),
            "protocol": PROTOCOL,
            "model": model,
            "text": {"name": text_name, "tokens_sha256": tokens_sha256(self.token_ids)},
            "tokens": tokens,
            "chunk": self.chunk,
            "perplexity": round(perplexity(self.nll), _DIGITS),
            "perplexity_by_position": _by_position(running(self.nll, _WINDOW)),
            "perplexity_cumulative": _by_position(
                Bucket(0, bucket.stop, perplexity(self.nll[: bucket.stop - 1]))
                for bucket in running(self.nll, _WINDOW)
            ),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 2),
            "peak_bytes": max(held.num_bytes for held in self.held),
            "mean_bytes": round(self.mean_bytes),
            "compactions": self.compactions,
            "num_seen": tokens,
            "kept": [list(tokens) for tokens in self.kept],
            "layer_to_kept": list(self.layer_to_kept),
            "memory": [list(held) for held in self.held],
            "nll": [round(value, _DIGITS) for value in self.nll],
            "environment": environment(),
        }


def read(
    model: Any,
    token_ids: Sequence[int],
    policy: Policy,
    *,
    chunk: int = 64,
    sampling: Sampling | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Reading, Writer]:
    """Read tokens from the start and score each by what is held when it comes.

    Memory is that of the cache and of one chunk's logits, plus a few numbers per token. The result
    does not depend on `chunk`, except for the rounding of another order of sums. A bounded policy
    runs on the engine, a full cache on `LaCache`.

    Args:
        model: a causal language model of transformers.
        token_ids: at least two tokens.
        policy: what the cache keeps.
        chunk: most tokens per forward; forwards also end where a compaction falls due.
        sampling: how the text goes on afterwards; greedy by default.
        on_progress: called with the number of tokens after each forward.

    Returns:
        The measurement, and the text as it stands after the last token.

    Raises:
        InputError: too few tokens, or a chunk below 1.
        ConfigError: the policy cannot work for this model.
        UnsupportedModelError: the model's caches or positions are not understood.
        ModelError: the model gives something that is not a number.
    """
    _check(token_ids, chunk)
    info = model_info(model)
    schedule = policy.bind(len(info.growing))
    timetable = Timetable(schedule)
    held: list[Held] = []
    writer: Writer
    if schedule.capacity == UNBOUNDED or info.linear:
        cache = LaCache.from_model(model, policy)
        writer = CachedWriter(model, cache, sampling)

        def score(note: Callable[[int], None]) -> list[float]:
            return score_tokens(model, token_ids, cache, chunk=chunk, on_progress=note)
    else:
        session = writer = Engine.from_model(model, policy).open(sampling)

        def score(note: Callable[[int], None]) -> list[float]:
            return _finite(model, session.score(token_ids, chunk=chunk, on_progress=note))

    def note(num_tokens: int) -> None:
        num_seen = num_tokens + (held[-1].num_seen if held else 0)
        num_cached = timetable.state_at(num_seen).num_cached
        held.append(Held(num_seen, num_cached, writer.num_bytes()))
        if on_progress is not None:
            on_progress(num_tokens)

    begun = time.perf_counter()
    nll = score(note)
    seconds = time.perf_counter() - begun
    by_pattern = kept_after(schedule, len(token_ids)).by_pattern
    distinct = list(dict.fromkeys(tuple(by_pattern[pattern]) for pattern in schedule.patterns))
    reading = Reading(
        policy=policy,
        token_ids=tuple(token_ids),
        chunk=chunk,
        nll=tuple(nll),
        held=tuple(held),
        compactions=writer.report().compactions,
        kept=tuple(distinct),
        layer_to_kept=tuple(distinct.index(tuple(by_pattern[p])) for p in schedule.patterns),
        seconds=seconds,
    )
    return reading, writer


@torch.no_grad()
def score_tokens(
    model: Any,
    token_ids: Sequence[int],
    cache: HookedCache,
    *,
    chunk: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Read tokens with an empty cache and score each by what the cache then holds.

    Args:
        model: a causal language model of transformers.
        token_ids: at least two tokens.
        cache: any cache that reads by itself; it holds the tokens afterwards.
        chunk: most tokens per forward; forwards also end where a compaction falls due.
        on_progress: called with the number of tokens after each forward.

    Returns:
        Negative log-likelihoods in nats of the tokens 1, 2, ...

    Raises:
        InputError: too few tokens, or a chunk below 1.
        ModelError: the model gives something that is not a number.
    """
    _check(token_ids, chunk)
    ids = torch.tensor(token_ids, dtype=torch.long, device=model.device)[None]
    nll = torch.empty(len(token_ids) - 1)
    start = 0
    while start < len(token_ids):
        stop = start + min(chunk, cache.next_chunk(len(token_ids) - start))
        logits = model(
            input_ids=ids[:, start:stop], **cache_argument(model, cache), use_cache=True
        ).logits
        targets = ids[0, start + 1 : stop + 1]
        scores = cross_entropy(logits[0, : len(targets)].float(), targets, reduction="none")
        nll[start : start + len(targets)] = scores
        if on_progress is not None:
            on_progress(stop - start)
        start = stop
    return _finite(model, nll)


def _check(token_ids: Sequence[int], chunk: int) -> None:
    if len(token_ids) < 2:
        raise InputError(
            f"a text of {len(token_ids)} tokens cannot be scored, as the first is not predicted; "
            "give at least 2"
        )
    if chunk < 1:
        raise InputError(f"chunk={chunk} must be at least 1; try chunk=64")


def _finite(model: Any, nll: Tensor) -> list[float]:
    """Scores of the tokens 1, 2, ... as plain numbers."""
    wrong = (~nll.isfinite()).nonzero()
    if len(wrong):
        token = int(wrong[0]) + 1
        raise ModelError(
            f"the log-likelihood of token {token} is {-float(nll[token - 1])} and must be a finite "
            f"number; load the model in another type than {model.dtype}, such as float32"
        )
    values: list[float] = nll.tolist()
    return values


def _by_position(found: Iterable[Bucket]) -> list[list[float]]:
    return [[b.start, b.stop, round(b.perplexity, _DIGITS)] for b in found]


def policy_record(policy: Policy) -> Record:
    """A policy's name and settings."""
    name = next(name for name, kind in POLICIES.items() if isinstance(policy, kind))
    settings = asdict(policy)  # type: ignore[call-overload]
    return {"name": name, **settings}


def model_record(model: Any, name: str) -> Record:
    """What a record says of a model: name, type of numbers, and size of the trained context."""
    config = model.config.get_text_config()
    return {
        "name": name,
        "architecture": type(model).__name__,
        "num_layers": config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "trained_context": getattr(config, "max_position_embeddings", None),
    }


def tokens_sha256(token_ids: Sequence[int]) -> str:
    """SHA-256 of the tokens as decimal numbers with a comma between them."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()

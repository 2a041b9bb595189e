"""The model type itself; needs lm-eval, so `lacache.integrations.lm_eval` names it lazily."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, final

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from lacache.cache import HookedCache
from lacache.common.validation import validate_int
from lacache.errors import ConfigError, InputError
from lacache.evals.methods.registry import METHODS, parse_method
from lacache.evals.monitor import CacheMonitor
from lacache.evals.runs import FirstToken, Protocol
from lacache.models import load_model
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.policies.budget import Budget, ParsedBudget, parse_budget
from lacache.version import __version__

_CHUNK = 256
_ENDLESS = 1 << 40
Request = tuple[Any, list[int], list[int]]
"""The texts (None for a window of a document), tokens of context and continuation."""


@final
@dataclass(frozen=True)
class _Opened:
    cache: HookedCache
    limit: int | None
    """Tokens per layer that it may hold on average."""


@final
class LaCacheLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's `hf` model with a bounded cache for each request.

    Contexts are read in segments, so that nothing is ever read from a cache larger than the
    budget, and lengths have no limit: a document of any length is one window. A context that
    several continuations share is read once. `policy=full` gives the numbers of `hf`.

    Args:
        pretrained: as in `hf`, and "default" or a .gguf file as in `lacache.models.load_model`.
        budget: tokens per layer (512), a share of the context (0.25; of the whole window where
            lm-eval asks for the likelihood of a document), or bytes ("64MiB").
        policy: any method of `lacache eval`, such as ladder, streaming or full. Its settings
            (span, overlap, recent, evict_batch ...) are arguments too, written as there; a preset
            is `policy=preset,preset=global`.
        prefill: "chunked", or "dense" to read a context with a full cache and then compact it.
        first_token: in a dense prefill, where the first answer token comes from; see `Protocol`.
        smallest: tokens that a share of a short context is never below.
        batch_size: 1, as requests differ in length and so in what they keep.
        max_length: cuts requests from the left as in `hf`; by default nothing is cut, and with
            policy=full what `hf` cuts.
        options: what `hf` takes, such as dtype, device or attn_implementation.

    Raises:
        ConfigError: an option that cannot work.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        budget: Budget | None = None,
        policy: str = "ladder",
        prefill: Literal["chunked", "dense"] = "chunked",
        first_token: FirstToken = "cache",
        smallest: int = 64,
        batch_size: int | str | None = 1,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        # Before a model is loaded for nothing.
        if str(batch_size or 1) != "1":
            raise ConfigError(
                f"batch_size={batch_size} must be 1, as each request has a cache of its own; try "
                "--batch_size 1"
            )
        validate_int("smallest", smallest, 1)
        self._protocol = Protocol(prefill, first_token)
        make: Any = METHODS.get(policy)
        known = [field.name for field in fields(make)] if make else []
        settings = {name: options.pop(name) for name in known if name in options}
        spec = ",".join(f"{name}={value}" for name, value in settings.items())
        self._method = parse_method(f"{policy}:{spec}" if spec else policy)
        self._is_full = policy == "full"
        self._budget = _parsed(budget, is_full=self._is_full)
        self._budget_text = None if self._is_full else str(budget)
        self._smallest = smallest
        self._peak_bytes = 0.0
        if isinstance(pretrained, str) and (
            pretrained == "default" or pretrained.lower().endswith(".gguf")
        ):
            pretrained = str(load_model(pretrained).path)
        super().__init__(pretrained, batch_size=1, max_length=max_length, **options)

    @property
    def max_length(self) -> int:
        """Tokens that a request is cut to."""
        if self._is_full or self._max_length:
            length: int = super().max_length
            return length
        return _ENDLESS

    def get_model_info(self) -> dict[str, Any]:
        """For lm-eval's results: what `hf` tells, and what bounded the cache."""
        return {
            **super().get_model_info(),
            "lacache": __version__,
            "lacache_policy": self._method.record(),
            "lacache_budget": self._budget_text,
            "lacache_prefill": self._protocol.prefill,
            "lacache_first_token": self._protocol.first_token,
            "lacache_peak_bytes": self._peak_bytes,
        }

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding writes it."""
        # A context that several continuations share is read once; documents share nothing.
        groups: dict[object, list[int]] = defaultdict(list)
        contexts: dict[int, list[int]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            contexts[number] = self._cut(context, continuation)[: -len(continuation)]
            groups[number if texts is None else tuple(contexts[number])].append(number)
        answers: dict[int, tuple[float, bool]] = {}
        bar = tqdm(
            total=len(requests),
            disable=disable_tqdm or self.rank != 0,
            desc="Running loglikelihood requests",
        )
        # The longest first, so that what is too long for the machine shows at once.
        for numbers in sorted(groups.values(), key=lambda same: -len(contexts[same[0]])):
            texts, _, continuation = requests[numbers[0]]
            context = contexts[numbers[0]]
            opened = self._open(len(context) + (len(continuation) if texts is None else 0))
            logits = self._read(opened, context)
            for number in numbers:
                is_last = number == numbers[-1]
                fork = opened if is_last else replace(opened, cache=copy.deepcopy(opened.cache))
                answers[number] = self._score(fork, logits, requests[number][2])
                # lm-eval keeps the sum over a document's windows instead.
                if requests[number][0] is not None:
                    self.cache_hook.add_partial(
                        "loglikelihood", requests[number][0], answers[number]
                    )
                bar.update(1)
        bar.close()
        return [answers[number] for number in range(len(requests))]

    def _model_generate(
        self, context: Tensor, max_length: int, stop: Any, **options: Any
    ) -> Tensor:
        """What `hf` generates from [1, Q] tokens, with a bounded cache."""
        opened = self._open(context.shape[1])
        before = self._pieces(context[0].tolist())[:-1]
        for piece in before:
            with self._monitoring(opened, dense=True):
                opened.cache.prefill(self.model, self._tensor(piece))
        # Where the first token comes from the dense pass, that pass and the writing are one.
        with self._monitoring(opened, dense=self._is_dense and not before):
            tokens: Tensor = super()._model_generate(
                context=context,
                max_length=max_length,
                stop=stop,
                **cache_argument(self.model, opened.cache),
                **options,
            )
        return tokens

    @property
    def _is_dense(self) -> bool:
        return self._protocol.is_dense

    def _cut(self, context: list[int], continuation: list[int]) -> list[int]:
        """As `hf` cuts: from the left, and never the continuation."""
        if not continuation or len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens must have 1 to {self.max_length}; "
                "try a larger max_length"
            )
        return (context + continuation)[-(self.max_length + 1) :]

    def _open(self, prompt_tokens: int) -> _Opened:
        capacity = self._budget.capacity(
            bytes_per_token=model_info(self.model).bytes_per_token,
            prompt_tokens=prompt_tokens,
            smallest=self._smallest,
        )
        cache = self._method.open(self.model, capacity=capacity, dense=self._is_dense)
        return _Opened(cache, None if self._is_full else capacity)

    def _pieces(self, prompt: list[int]) -> list[list[int]]:
        """In a dense prefill the last token is read from what the compaction has left."""
        if self._is_dense and self._protocol.first_token == "cache":
            return [piece for piece in (prompt[:-1], prompt[-1:]) if piece]
        return [prompt]

    def _read(self, opened: _Opened, context: list[int]) -> Tensor:
        """Read a context; returns the logits [1, V] of what comes next."""
        for number, piece in enumerate(self._pieces(context)):
            with self._monitoring(opened, dense=self._is_dense and number == 0):
                logits = opened.cache.prefill(self.model, self._tensor(piece))
        return logits

    @torch.no_grad()
    def _score(
        self, opened: _Opened, logits: Tensor, continuation: list[int]
    ) -> tuple[float, bool]:
        targets = torch.tensor(continuation, device=self.device)
        found = [self._log_probs(logits, targets[:1])]
        with self._monitoring(opened, dense=False):
            # Piece by piece, as the logits of a long document are larger than its cache.
            for start in range(0, len(continuation) - 1, _CHUNK):
                stop = min(start + _CHUNK, len(continuation) - 1)
                piece = self._tensor(continuation[start:stop])
                output = self.model(
                    input_ids=piece, **cache_argument(self.model, opened.cache), use_cache=True
                )
                found.append(self._log_probs(output.logits[0], targets[start + 1 : stop + 1]))
        log_probs = torch.cat([values for values, _ in found])
        return float(log_probs.sum()), all(is_greedy for _, is_greedy in found)

    def _log_probs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, bool]:
        """Of `targets` [Q] under logits [Q, V], and whether they are the likeliest."""
        log_probs = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        chosen = log_probs.gather(1, targets[:, None]).squeeze(1)
        return chosen, bool((log_probs.argmax(dim=-1) == targets).all())

    @contextmanager
    def _monitoring(self, opened: _Opened, *, dense: bool) -> Iterator[None]:
        """Hold a method to its budget, and remember the most bytes."""
        monitor = CacheMonitor(self.model, opened.cache, capacity=opened.limit)
        with (
            torch.autocast(
                device_type=self.device.type,
                dtype=self.mixed_precision_dtype,
                enabled=self.mixed_precision_dtype is not None,
            ),
            monitor.monitoring(dense=dense),
        ):
            yield
        self._peak_bytes = max(self._peak_bytes, monitor.peak_bytes)

    def _tensor(self, tokens: list[int]) -> Tensor:
        return torch.tensor([tokens], dtype=torch.long, device=self.device)


def _parsed(budget: Budget | None, *, is_full: bool) -> ParsedBudget:
    if is_full:
        if budget is not None:
            raise ConfigError(f"policy=full has no budget; leave budget={budget} out")
        return ParsedBudget(share=1.0)
    if budget is None:
        raise ConfigError("no budget was given; try budget=512, budget=0.25 (share) or 64MiB")
    return parse_budget(budget)

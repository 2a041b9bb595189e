"""The model type of `lacache.integrations.lm_eval`, in a module that needs lm-eval to import."""

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
from lacache.cache.encoded import bytes_per_token
from lacache.common.validation import validate_int, validate_kv_dtype
from lacache.errors import ConfigError, InputError
from lacache.evals.baselines import BASELINES
from lacache.evals.monitor import CacheMonitor
from lacache.evals.policies import open_cache, parse_eval_policy
from lacache.evals.runs import FirstToken, Protocol
from lacache.models import load_model
from lacache.models.decoder import cache_argument
from lacache.models.model_info import model_info
from lacache.policies import DEFAULT_POLICY, POLICIES, BudgetLike, Full, Policy, validate_budget
from lacache.version import __version__

_TOKENS_PER_FORWARD = 256
_NO_LIMIT = 1 << 40
_SETTINGS = {f.name for kind in (*POLICIES, *BASELINES) for f in fields(kind)}
Request = tuple[Any, list[int], list[int]]
"""Context and continuation as text (None for a window of a document), then as tokens."""


@final
@dataclass(frozen=True)
class _BoundedCache:
    cache: HookedCache
    capacity: int | None
    """Tokens per layer that it may hold on average; None for a policy without a budget."""


@final
class LaCacheLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's `hf` model with a bounded cache for each request.

    With a chunked prefill no forward attends to more than the budget, and lengths have no limit: a
    document of any length is one window. A context that several continuations share is prefilled
    once. `policy=full` gives the numbers of `hf`.

    Args:
        pretrained: as in `hf`, and "default" or a .gguf file as in `lacache.models.load_model`.
        budget: tokens per layer (512), a share of the context (0.25; of the whole window where
            lm-eval asks for the likelihood of a document), or bytes ("64MiB").
        policy: a policy or its text, as for `lacache eval`: `ladder:span=15:overlap=0`,
            `balanced`, `streaming`, `full`, or a baseline such as `keydiff`.
        prefill: "chunked", or "dense" to prefill a context with a full cache and then compact it.
        first_token: with a dense prefill, where the first answer token comes from; see `Protocol`.
        smallest: least number of tokens that a share of a short context gives.
        kv_dtype: what keys and values are stored in, such as "int8"; None is the model's own type.
        batch_size: 1, as requests differ in length and so in what they keep.
        max_length: longest request, cut from the left as in `hf`; by default there is no limit, and
            with policy=full the limit of `hf`.
        options: options of `hf`, such as dtype, device or attn_implementation.

    Raises:
        ConfigError: an argument that cannot work.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        budget: BudgetLike | None = None,
        policy: Policy | str = DEFAULT_POLICY,
        prefill: Literal["chunked", "dense"] = "chunked",
        first_token: FirstToken = "cache",
        smallest: int = 64,
        kv_dtype: str | None = None,
        batch_size: int | str | None = 1,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        # Refused before a model is loaded.
        if str(batch_size or 1) != "1":
            raise ConfigError(
                f"batch_size={batch_size} must be 1, as each request has a cache of its own; try "
                "--batch_size 1"
            )
        validate_int("smallest", smallest, 1)
        validate_kv_dtype(kv_dtype)
        self._protocol = Protocol(prefill, first_token)
        for name in _SETTINGS & options.keys():
            raise ConfigError(
                f"{name}={options[name]} is no argument; write the settings of a policy in its "
                "text, such as policy=ladder:span=15:overlap=0"
            )
        self._policy = parse_eval_policy(policy)
        self._budget = validate_budget(self._policy, budget)
        self._smallest = smallest
        self._kv_dtype = kv_dtype
        self._peak_bytes = 0.0
        if isinstance(pretrained, str) and (
            pretrained == "default" or pretrained.lower().endswith(".gguf")
        ):
            pretrained = str(load_model(pretrained).path)
        super().__init__(pretrained, batch_size=1, max_length=max_length, **options)

    @property
    def max_length(self) -> int:
        """Longest request in tokens."""
        if isinstance(self._policy, Full) or self._max_length:
            length: int = super().max_length
            return length
        return _NO_LIMIT

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval records of the model: that of `hf`, and what bounded the cache."""
        return {
            **super().get_model_info(),
            "lacache": __version__,
            "lacache_policy": str(self._policy),
            "lacache_budget": self._budget and str(self._budget),
            "lacache_prefill": self._protocol.prefill,
            "lacache_first_token": self._protocol.first_token,
            "lacache_kv_dtype": self._kv_dtype,
            "lacache_peak_bytes": self._peak_bytes,
        }

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether greedy decoding gives it."""
        # Continuations that share a context share its prefill; documents share nothing.
        groups: dict[object, list[int]] = defaultdict(list)
        contexts: dict[int, list[int]] = {}
        for number, (text, context, continuation) in enumerate(requests):
            contexts[number] = self._cut(context, continuation)[: -len(continuation)]
            groups[number if text is None else tuple(contexts[number])].append(number)
        answers: dict[int, tuple[float, bool]] = {}
        bar = tqdm(
            total=len(requests),
            disable=disable_tqdm or self.rank != 0,
            desc="Running loglikelihood requests",
        )
        # The longest first, so that a context too long for the machine fails at once.
        for numbers in sorted(groups.values(), key=lambda same: -len(contexts[same[0]])):
            text, _, continuation = requests[numbers[0]]
            context = contexts[numbers[0]]
            bounded = self._new_cache(len(context) + (len(continuation) if text is None else 0))
            logits = self._prefill(bounded, context)
            for number in numbers:
                is_last = number == numbers[-1]
                fork = bounded if is_last else replace(bounded, cache=copy.deepcopy(bounded.cache))
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
        """Generate from [1, Q] tokens as `hf` does, with a bounded cache."""
        bounded = self._new_cache(context.shape[1])
        before = self._parts(context[0].tolist())[:-1]
        for part in before:
            with self._monitoring(bounded, dense=True):
                bounded.cache.prefill(self.model, self._tensor(part))
        # If the first token comes from the dense pass, `generate` runs that pass.
        with self._monitoring(bounded, dense=self._protocol.is_dense and not before):
            tokens: Tensor = super()._model_generate(
                context=context,
                max_length=max_length,
                stop=stop,
                **cache_argument(self.model, bounded.cache),
                **options,
            )
        return tokens

    def _cut(self, context: list[int], continuation: list[int]) -> list[int]:
        """Cut a request as `hf` does: from the left, and never the continuation."""
        if not continuation or len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens must have 1 to {self.max_length}; "
                "try a larger max_length"
            )
        return (context + continuation)[-(self.max_length + 1) :]

    def _new_cache(self, prompt_tokens: int) -> _BoundedCache:
        capacity = None
        if self._budget is not None:
            capacity = self._budget.capacity(
                bytes_per_token=bytes_per_token(model_info(self.model), self._kv_dtype),
                prompt_tokens=prompt_tokens,
                smallest=self._smallest if self._budget.share else 1,
            )
        cache = open_cache(
            self.model,
            self._policy,
            capacity or 0,
            dense=self._protocol.is_dense,
            kv_dtype=self._kv_dtype,
        )
        return _BoundedCache(cache, capacity)

    def _parts(self, prompt: list[int]) -> list[list[int]]:
        """Split off the last token if it follows after the compaction of a dense prefill."""
        if self._protocol.is_dense and self._protocol.first_token == "cache":
            return [part for part in (prompt[:-1], prompt[-1:]) if part]
        return [prompt]

    def _prefill(self, bounded: _BoundedCache, context: list[int]) -> Tensor:
        """Prefill a context; return the logits [1, V] of the next token."""
        for number, part in enumerate(self._parts(context)):
            with self._monitoring(bounded, dense=self._protocol.is_dense and number == 0):
                logits = bounded.cache.prefill(self.model, self._tensor(part))
        return logits

    @torch.no_grad()
    def _score(
        self, bounded: _BoundedCache, logits: Tensor, continuation: list[int]
    ) -> tuple[float, bool]:
        targets = torch.tensor(continuation, device=self.device)
        found = [self._log_probs(logits, targets[:1])]
        with self._monitoring(bounded, dense=False):
            # In parts, as the logits of a long document are larger than its cache.
            for start in range(0, len(continuation) - 1, _TOKENS_PER_FORWARD):
                stop = min(start + _TOKENS_PER_FORWARD, len(continuation) - 1)
                part = self._tensor(continuation[start:stop])
                output = self.model(
                    input_ids=part, **cache_argument(self.model, bounded.cache), use_cache=True
                )
                found.append(self._log_probs(output.logits[0], targets[start + 1 : stop + 1]))
        log_probs = torch.cat([values for values, _ in found])
        return float(log_probs.sum()), all(is_greedy for _, is_greedy in found)

    def _log_probs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, bool]:
        """Return log-probabilities [Q] of `targets` under logits [Q, V], and if all are greedy."""
        log_probs = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        chosen = log_probs.gather(1, targets[:, None]).squeeze(1)
        return chosen, bool((log_probs.argmax(dim=-1) == targets).all())

    @contextmanager
    def _monitoring(self, bounded: _BoundedCache, *, dense: bool) -> Iterator[None]:
        """Check that a policy keeps to its budget, and record the most bytes."""
        monitor = CacheMonitor(self.model, bounded.cache, capacity=bounded.capacity)
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

"""Forward passes of the model over the static buffers: eager, or compiled once."""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from types import FunctionType
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.codecs import KV_FORMAT
from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.attention import Attend, GroupedLayer, fused
from lacache.cache.static.layout import CacheLayout, shares_slots_on
from lacache.cache.static.static_cache import StaticKVCache
from lacache.engine.cpu.fused_step import find_fused_step
from lacache.engine.cpu.kernels import KernelAttention, KernelCompactionOps
from lacache.engine.cpu.linear import use_cpu_linear
from lacache.engine.int8 import quantize_weights
from lacache.engine.private_model import private_model
from lacache.errors import ConfigError, UnsupportedModelError
from lacache.models.decoder import cache_name
from lacache.models.fingerprint import fingerprint
from lacache.models.model_info import model_info
from lacache.models.packed.layers import is_packed
from lacache.policies import BoundPolicy

Backend = str | Callable[..., Any]

# With CUDA graphs the first run compiles, the second records, and the third replays.
_WARM_UPS_ON_GPU = 3


@contextmanager
def _refuse_key_access() -> Iterator[None]:
    """Raise for a model that uses its keys between cache and attention, where there are none."""
    try:
        yield
    except AttributeError as error:
        if isinstance(error.obj, GroupedLayer):
            raise UnsupportedModelError(
                f"the model uses the {error.name} of its keys before it attends, and the engine "
                "has them in its cache alone; use LaCache(model, budget=512) and lacache.stream"
            ) from error
        raise


@final
class Runner:
    """Runs chunks of prompts, and decode steps of one token in every batch slot.

    Args:
        model: of transformers; it stays unchanged.
        bound: the policy, bound to the model.
        max_sequences: batch slots.
        backend: of torch.compile, for steps; None runs them eagerly.
        kv_dtype: what keys and values are stored in; see CacheLayout.
        weights: "int8" quantizes those of linear layers, in a copy; None takes the model's.
        attend: the attention function; None takes the model's.
        kernels: whether to use the CPU kernels, which `load_kernels` has loaded.
        fuse: whether steps may be one call of a kernel; False runs the model's modules.
        model_fingerprint: the model's fingerprint, where the caller has it.
    """

    def __init__(
        self,
        model: Any,
        bound: BoundPolicy,
        max_sequences: int,
        backend: Backend | None,
        kv_dtype: str | None = None,
        weights: str | None = None,
        attend: Attend | None = None,
        kernels: bool = False,
        fuse: bool = True,
        model_fingerprint: str | None = None,
    ) -> None:
        shares_slots = shares_slots_on(model.device)
        self.layout = CacheLayout(model_info(model), bound, kv_dtype, shares_slots)
        # Of the checkpoint: never of weights that are quantised below.
        self.fingerprint = model_fingerprint or fingerprint(model)
        packed = is_packed(model)
        self.weights = "packed" if packed else weights
        if weights is not None and packed:
            raise ConfigError(
                f"weights={weights!r} is for weights in 16 or 32 bits, and those of the model are "
                "packed; leave it out, or load the model without weights"
            )
        self._model, own = private_model(model)
        if weights is not None:
            quantize_weights(self._model, weights, kernels=kernels)
        self._cache_name = cache_name(model)
        takes = signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.cache = StaticKVCache(
            self.layout,
            max_sequences,
            attend or own,
            model.device,
            KernelCompactionOps() if kernels else None,
            KernelAttention() if kernels and attend is None and own is fused else None,
        )
        if model.device.type == "cpu":
            use_cpu_linear(self._model, alone=max_sequences == 1, kernels=kernels)
        self._fused_step = None
        if kernels and fuse and attend is None:
            self._fused_step = find_fused_step(self._model, self.cache)
        self._step: Callable[..., Tensor] = _forward
        self.vocab_size: int = self.layout.info.text_config.vocab_size
        self.compile_seconds: float | None = None
        """How long the first compiled step took; None before it, and without compilation."""
        self._backend = backend

    @property
    def fused(self) -> bool:
        """Whether decode steps are one call of a kernel."""
        return self._fused_step is not None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Model, policy and types as JSON: equal for runners that share snapshots."""
        info = self.layout.info
        config: Any = info.text_config
        identity = {
            "dtype": str(info.dtype).removeprefix("torch."),
            "kv_dtype": self.layout.kv_dtype,
            "weights": self.weights,
            "model": self.fingerprint,
            # The same weights can be loaded with another rotary configuration.
            "positions": config.rope_parameters,
            "policy": self.layout.bound.identity,
        }
        if self.layout.kv_dtype is not None:
            # Centers follow from the weights and from the number of positions.
            centered = [layer.index for layer in info.growing if layer.key_center is not None]
            identity["kv_format"] = {
                "name": KV_FORMAT,
                "centered_layers": centered,
                "positions": info.trained_length if centered else None,
            }
        same: dict[str, Any] = json.loads(json.dumps(identity))
        return same

    def held_bytes(self, sequence: SequenceState) -> int:
        """Return the bytes of the tokens that a sequence holds."""
        num_cached = [group.state.num_cached for group in sequence.groups]
        return self.layout.held_bytes(sequence.num_seen, num_cached)

    def prefill(self, batch_slot: int, tokens: Tensor) -> Tensor:
        """Process tokens [Q], at most `cache.chunk_length`; return the last one's logits [V]."""
        return self._prefill(batch_slot, tokens, self._last_only)[-1]

    def prefill_all_logits(self, batch_slot: int, tokens: Tensor) -> Tensor:
        """Process tokens [Q], at most `cache.chunk_length`; return the logits [Q, V] of all."""
        return self._prefill(batch_slot, tokens, {})

    @torch.no_grad()
    def _prefill(self, batch_slot: int, tokens: Tensor, options: dict[str, Any]) -> Tensor:
        layers, positions = self.cache.begin_prefill(batch_slot, len(tokens))
        ids = tokens.to(self.cache.device)[None]
        options = {self._cache_name: layers} | options
        with self._no_autocast(), _refuse_key_access():
            logits = _logits(self._model, ids, positions, options)
        self.cache.commit(batch_slot, len(tokens))
        return logits[0]

    @torch.no_grad()
    def decode(self, tokens: Sequence[int], active: Sequence[int]) -> Tensor:
        """Process one token of each active batch slot.

        Args:
            tokens: one for each batch slot; those of inactive slots have no effect.
            active: the batch slots to advance.

        Returns:
            Logits [batch slots, V]; those of inactive batch slots are meaningless.
        """
        layers, positions = self.cache.begin_decode(active, masks=not self.fused)
        # From pinned memory, so as not to wait for a GPU that is busy.
        ids = torch.tensor(tokens, pin_memory=self._on_gpu)[:, None]
        ids = ids.to(self.cache.device, non_blocking=True)
        with self._no_autocast():
            logits = self._run_step(ids, positions, layers)
        for batch_slot in active:
            self.cache.commit(batch_slot, 1)
        return logits

    def warm_up(self) -> None:
        """Run decode steps with no active batch slot, which compiles them if compilation is on."""
        for _ in range(_WARM_UPS_ON_GPU if self._on_gpu else 1):
            self.decode([0] * len(self.cache.sequences), [])

    def _no_autocast(self) -> torch.autocast:
        """Disable autocast: what was compiled for one type must not run in another."""
        return torch.autocast(self.cache.device.type, enabled=False)

    @property
    def _on_gpu(self) -> bool:
        return self.cache.device.type == "cuda"

    def _run_step(self, ids: Tensor, positions: Tensor, layers: Any) -> Tensor:
        if self._fused_step is not None:
            return self._fused_step(ids, positions)
        options = {self._cache_name: layers} | self._last_only
        if self._backend is None or self.compile_seconds is not None:
            return self._step(self._model, ids, positions, options)
        started = time.perf_counter()
        try:
            with warnings.catch_warnings():
                # Warnings of torch during compilation concern torch itself.
                warnings.simplefilter("ignore")
                self._step = self._compiled(self._backend)
                logits = self._step(self._model, ids, positions, options)
        except Exception as error:
            # Nothing was counted yet, so the step can run again, whatever the compiler raised.
            # The first paragraph is the backend's error; the others are about debugging.
            reason = " ".join(str(error).split("\n\n")[0].split())
            warnings.warn(
                f"compiling failed ({type(error).__name__}: {reason}), so steps run uncompiled and "
                "slower; try a newer torch, another C++ compiler in CXX, or compile=False",
                stacklevel=2,
            )
            self._backend, self._step = None, _forward
            return self._step(self._model, ids, positions, options)
        self.compile_seconds = time.perf_counter() - started
        return logits

    def _compiled(self, backend: Backend) -> Callable[..., Tensor]:
        # torch caches compiled code by code object, and gives up after a few variants; so each
        # engine has a code object of its own.
        own = FunctionType(_forward.__code__.replace(), _forward.__globals__)
        options: dict[str, Any] = {}
        if backend == "inductor":
            # They check shapes that never change, for a fiftieth of a step's time.
            unchecked = {"size_asserts", "alignment_asserts"} & set(torch._inductor.list_options())
            options |= dict.fromkeys(unchecked, False)
            if self._on_gpu:
                options["triton.cudagraphs"] = True
        # Before each step torch would check its guards, for a tenth of a step's time. They always
        # hold: model, cache and shapes are the engine's own.
        unguarded = vars(torch.compiler).get("skip_all_guards_unsafe")
        if unguarded is not None:
            options["guard_filter_fn"] = unguarded
        return torch.compile(own, backend=backend, options=options, fullgraph=True, dynamic=False)


def _forward(model: Any, ids: Tensor, positions: Tensor, options: dict[str, Any]) -> Tensor:
    """Last token's logits [B, V] in float32, from ids [B, Q]."""
    return _logits(model, ids, positions, options)[:, -1]


def _logits(model: Any, ids: Tensor, positions: Tensor, options: dict[str, Any]) -> Tensor:
    """Logits [B, Q, V] in float32, or fewer tokens' where the options say so."""
    output = model(
        input_ids=ids,
        position_ids=positions,
        use_cache=True,
        **options,
    )
    logits: Tensor = output.logits.float()
    return logits

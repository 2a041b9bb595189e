"""Decode steps of the ways that are compared: one token in, the likeliest next one out.

Every way runs in the same process, over the same weights, with the same number of threads. What
each round starts from is prepared outside the time that is measured.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from lacache.cache import LaCache
from lacache.cache.static.sequence_tensors import SequenceTensors, export_sequence, restore_sequence
from lacache.engine.runner import Runner
from lacache.kernels.build import load_kernels
from lacache.models.decoder import cache_argument
from lacache.models.fingerprint import model_profile
from lacache.models.model_info import model_info
from lacache.policies import BoundPolicy, ModelShape, Policy, bind_policy, parse_policy


def bind(
    model: Any, policy: Policy | str, budget: int, *, with_profile: bool = False
) -> BoundPolicy:
    """Return what a policy keeps in a model, with its head profile or as if it had none."""
    info = model_info(model)
    shape = ModelShape(info.num_heads, model_profile(model) if with_profile else None)
    return bind_policy(
        parse_policy(policy), budget, shape, bytes_per_token=info.bytes_per_token, prompt_tokens=1
    )


CHUNK_SIZE = 256
"""Most tokens of a prompt in one forward, as in the engine."""


class Stepper(ABC):
    """Decodes greedily with one cache."""

    compile_seconds: float | None = None
    """What the first compiled step took; None where nothing is compiled."""

    @abstractmethod
    def rewind(self) -> None:
        """Go back to where a round starts, or stay where the state is as good anywhere."""

    @abstractmethod
    def step(self, token: int) -> int:
        """Add a token and choose the next."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Of weights that a step reads."""

    @property
    @abstractmethod
    def attended_bytes(self) -> int:
        """Of keys and values that a step reads."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Of all keys and values that are held."""

    @property
    def compactions(self) -> int:
        """How many have run so far."""
        return 0

    def timed(self, tokens: Sequence[int]) -> tuple[list[float], list[int]]:
        """Milliseconds of each step, and which steps began with a compaction."""
        milliseconds, compacted = [], []
        for number, token in enumerate(tokens):
            before = self.compactions
            begun = time.perf_counter()
            self.step(token)
            milliseconds.append(1e3 * (time.perf_counter() - begun))
            if self.compactions > before:
                compacted.append(number)
        return milliseconds, compacted


@final
class EngineStepper(Stepper):
    """The engine's runner with one row.

    Args:
        model: of transformers.
        bound: the policy and the capacity of the cache.
        fill: tokens to prefill first.
        backend: of torch.compile; None is without.
        rewinds: start every round after `fill` tokens; else generation continues.
        options: of the Runner.
    """

    def __init__(
        self,
        model: Any,
        bound: BoundPolicy,
        fill: int,
        backend: str | None,
        *,
        rewinds: bool = False,
        **options: Any,
    ) -> None:
        kernels = options.pop("kernels", backend == "inductor")
        if kernels:
            load_kernels()
        self.runner = Runner(model, bound, 1, backend, kernels=kernels, **options)
        if backend is not None:
            self.runner.warm_up()
            self.compile_seconds = self.runner.compile_seconds
            if self.compile_seconds is None and not self.runner.fused:
                raise RuntimeError("the step could not be compiled")
        self.prefill(random_tokens(model, fill))
        cache = self.runner.cache
        # What later steps wrote lies in slots that nobody sees then.
        self._start = cache.sequences[0].copy() if rewinds else None

    def rewind(self) -> None:
        """Restore the counts of the start."""
        if self._start is not None:
            self.runner.cache.sequences[0] = self._start.copy()

    def prefill(self, tokens: Tensor) -> None:
        """Prefill tokens [Q] in chunks."""
        while len(tokens):
            length = self.runner.cache.chunk_length(0, min(len(tokens), CHUNK_SIZE))
            self.runner.prefill(0, tokens[:length])
            tokens = tokens[length:]

    def state(self) -> SequenceTensors:
        """Copy the state of the sequence."""
        return export_sequence(self.runner.cache, 0)

    def go_to(self, state: SequenceTensors) -> None:
        """Restore the state of another sequence with the same policy."""
        self.runner.cache.clear(0)
        restore_sequence(self.runner.cache, 0, state)

    @torch.no_grad()
    def step(self, token: int) -> int:
        """One compiled or eager step of the engine."""
        return int(self.runner.decode([token], [0])[0].argmax())

    @property
    def weight_bytes(self) -> int:
        """Of the private model."""
        return weight_bytes(self.runner._model)

    @property
    def attended_bytes(self) -> int:
        """Bytes of the keys and values of all slots, in use or not, without unrotated keys."""
        pools = self.runner.cache.pools
        return sum(storage.num_bytes for pool in pools for storage in pool.storages)

    @property
    def cache_bytes(self) -> int:
        """Of all buffers."""
        return self.runner.cache.num_bytes

    @property
    def compactions(self) -> int:
        """Of all groups."""
        return sum(group.num_compactions for group in self.runner.cache.sequences[0].groups)


@final
class LaCacheStepper(Stepper):
    """The transformers cache of this package, with the model as it is."""

    def __init__(self, model: Any, bound: BoundPolicy, fill: int) -> None:
        self._model = model
        self._cache = LaCache(model, bound.capacity, bound.policy)
        self._cache.prefill(model, random_tokens(model, fill)[None])

    def rewind(self) -> None:
        """Continue: the sequence has no end."""

    def step(self, token: int) -> int:
        """As `lacache.stream` does it."""
        return int(self._cache.prefill(self._model, torch.tensor([[token]]))[0].argmax())

    @property
    def weight_bytes(self) -> int:
        """Of the model."""
        return weight_bytes(self._model)

    @property
    def attended_bytes(self) -> int:
        """Of all that is held."""
        return self._cache.report().bytes

    @property
    def cache_bytes(self) -> int:
        """Of all that is held."""
        return self._cache.report().bytes

    @property
    def compactions(self) -> int:
        """As the cache counts them."""
        return self._cache.report().compactions


@final
class StaticCacheStepper(Stepper):
    """transformers' StaticCache, eager, or the whole forward compiled without a graph break."""

    def __init__(self, model: Any, slots: int, fill: int, backend: str | None) -> None:
        self._model = model
        self._cache = StaticCache(config=model.config, max_cache_len=slots)
        self._given = cache_argument(model, self._cache)
        self._fill = fill
        self._next = fill
        with torch.no_grad():
            model(
                input_ids=random_tokens(model, fill)[None],
                **cache_argument(model, self._cache),
                logits_to_keep=1,
            )
        self._forward = self._run
        if backend is not None:
            self._forward = torch.compile(self._run, backend=backend, fullgraph=True, dynamic=False)
            begun = time.perf_counter()
            self.step(0)
            self.compile_seconds = time.perf_counter() - begun
            self.rewind()

    def rewind(self) -> None:
        """Restore the counts of the start."""
        self._next = self._fill
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._fill)

    @torch.no_grad()
    def step(self, token: int) -> int:
        """A forward at the next slot."""
        position = torch.tensor([[self._next]])
        self._next += 1
        return int(self._forward(torch.tensor([[token]]), position)[0].argmax())

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            **self._given,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    @property
    def weight_bytes(self) -> int:
        """Of the model."""
        return weight_bytes(self._model)

    @property
    def attended_bytes(self) -> int:
        """Of all slots."""
        return self.cache_bytes

    @property
    def cache_bytes(self) -> int:
        """Of all slots."""
        return tensor_bytes(t for layer in self._cache.layers for t in (layer.keys, layer.values))


@final
class DynamicCacheStepper(Stepper):
    """transformers' DynamicCache, which grows; filled with random keys and values."""

    def __init__(self, model: Any, context: int, *, rewinds: bool) -> None:
        self._model = model
        self._context = context
        self._rewinds = rewinds
        self._cache = self._filled()

    def rewind(self) -> None:
        """Start with as many tokens again."""
        if self._rewinds:
            self._cache = self._filled()

    @torch.no_grad()
    def step(self, token: int) -> int:
        """A forward of the model."""
        output = self._model(
            input_ids=torch.tensor([[token]]),
            **cache_argument(self._model, self._cache),
            use_cache=True,
        )
        return int(output.logits[0, -1].argmax())

    def _filled(self) -> DynamicCache:
        config = self._model.config
        cache = DynamicCache(config=config)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (1, config.num_key_value_heads, self._context, size)
        for layer in range(config.num_hidden_layers):
            keys, values = (torch.randn(shape, dtype=self._model.dtype) for _ in range(2))
            cache.update(keys, values, layer)
        return cache

    @property
    def weight_bytes(self) -> int:
        """Of the model."""
        return weight_bytes(self._model)

    @property
    def attended_bytes(self) -> int:
        """Of all that is held."""
        return self.cache_bytes

    @property
    def cache_bytes(self) -> int:
        """Of all that is held."""
        return tensor_bytes(t for layer in self._cache.layers for t in (layer.keys, layer.values))


@final
class Copy:
    """The bandwidth of memory: a copy far larger than any cache of the processor."""

    NUM_BYTES = 1 << 28
    RUNS = 5

    def __init__(self) -> None:
        self._source = torch.ones(self.NUM_BYTES // 4)
        self._target = torch.zeros(self.NUM_BYTES // 4)

    def bytes_per_second(self) -> float:
        """Read plus written, median of some copies."""
        seconds = []
        for _ in range(self.RUNS):
            begun = time.perf_counter()
            self._target.copy_(self._source)
            seconds.append(time.perf_counter() - begun)
        return 2 * self.NUM_BYTES / sorted(seconds)[self.RUNS // 2]


def random_tokens(model: Any, number: int) -> Tensor:
    """Tokens [number] of a model, the same each time; what they say does not matter to a clock."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (number,), generator=generator)


def weight_bytes(model: Any) -> int:
    """Bytes of weights that one token reads: all, but of an embedding of its own one row."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    embedding = model.get_input_embeddings().weight
    if vars(model.get_output_embeddings())["_parameters"].get("weight") is not embedding:
        weights[id(embedding)] = embedding[:1]
    return tensor_bytes(weights.values())


def tensor_bytes(tensors: Any) -> int:
    """Of all together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def large_model() -> LlamaForCausalLM:
    """A Llama of 0.43 billion random weights in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=8192,
    )
    # Not `.to(torch.bfloat16)`, which would round the rotary frequencies too.
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    return model.eval()

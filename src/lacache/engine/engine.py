"""The engine: many sequences of any length over one model, in memory of constant size."""

import warnings
from collections.abc import Callable, Collection
from collections.abc import Sequence as TokenSequence
from os import PathLike
from typing import Any, final

from torch import Tensor

from lacache.cache.static.layout import CacheLayout, bind_within_bytes, shares_slots_on
from lacache.common.validation import validate_int
from lacache.engine.runner import Backend, Runner
from lacache.engine.sampler import Sampler
from lacache.engine.sampling import Sampling
from lacache.engine.scheduler import Scheduler
from lacache.engine.sequence import (
    Sequence,
    validate_count,
    validate_eos_token_ids,
    validate_tokens,
)
from lacache.engine.sequence_stream import SequenceStream
from lacache.engine.session import Session
from lacache.engine.snapshot import Snapshot, new_sampler, snapshot_kind, validate_snapshot
from lacache.errors import CompilerError, ConfigError, InputError
from lacache.kernels.build import load_kernels
from lacache.models.fingerprint import fingerprint, model_shape
from lacache.models.model_info import model_info
from lacache.policies import (
    DEFAULT_POLICY,
    BoundPolicy,
    BudgetLike,
    Policy,
    bind_policy,
    parse_policy,
    validate_budget,
)

# Matrix products are efficient from there on, and other sequences wait for a chunk.
_CHUNK_SIZE = 256
_LOOKAHEAD = 1024


@final
class Engine:
    """Generates for up to `max_sequences` sequences at a time.

    Every call of `step` prefills one chunk of one prompt, and generates one token for each
    decoding sequence. So a long prompt delays the others by one chunk at a time. All batch slots
    are computed in every step, in use or not: what a sequence generates never depends on others.

    An engine, its sessions and its streams belong to one thread. A session keeps its batch slot
    until it is closed.

        engine = Engine(model, budget=512, max_sequences=4)
        streams = [engine.submit(prompt, max_new_tokens=100) for prompt in prompts]
        completions = [list(stream) for stream in streams]

    Args:
        model: a causal language model of transformers, on one device; it stays unchanged, and its
            weights are shared, not copied.
        budget: tokens per layer, or bytes of one sequence such as "64MiB", which count the keys
            that move twice: the sinks', or all with positions=slots (docs/adr/0009, 0022). A share
            needs `prompt_tokens`.
        policy: which tokens are kept, as an object or as text; see `LaCache`.
        prompt_tokens: length of the prompt of which the budget is a share.
        max_sequences: batch slots, for as many sequences at a time. The memory of all is allocated
            now: `num_bytes`.
        chunk_size: most tokens of a prompt in one step, for which other sequences wait.
        kv_dtype: "int8" stores keys and values in about half the bytes of 16 bits, "int4" in
            between a third and a quarter; None is the model's own type. What it costs in quality:
            docs/memory.md.
        weights: "int8" quantizes the linear layers, in a copy; None takes the model's weights.
        compile: compile the decode step with torch.compile, unless it is `fused`. The first step
            then takes seconds, or minutes if nothing like it was compiled before; each later one
            is faster. If that fails, or compiling the CPU kernels with a C++ compiler, which any
            engine on CPU does once for a machine, a warning gives the reason, and steps run
            uncompiled.

    Raises:
        ConfigError: an option cannot work for this model.
        MissingExtraError: `weights` without the extra "int8".
        UnsupportedModelError: the model is not supported; `LaCache` may support it.
    """

    def __init__(
        self,
        model: Any,
        budget: BudgetLike | None = None,
        policy: Policy | str = DEFAULT_POLICY,
        *,
        prompt_tokens: int | None = None,
        max_sequences: int = 1,
        chunk_size: int = _CHUNK_SIZE,
        kv_dtype: str | None = None,
        weights: str | None = None,
        compile: bool = False,
    ) -> None:
        validate_int("max_sequences", max_sequences, 1)
        validate_int("chunk_size", chunk_size, 1)
        info = model_info(model)
        valid = parse_policy(policy)
        valid_budget = validate_budget(valid, budget)
        is_share = valid_budget is not None and valid_budget.share > 0
        if is_share and prompt_tokens is None:
            raise ConfigError(
                f"budget={budget} is a share of a prompt, and an engine prefills many prompts; try "
                "512 (tokens) or '64MiB' (bytes), or give prompt_tokens"
            )
        if prompt_tokens is not None:
            validate_int("prompt_tokens", prompt_tokens, 1)
            if not is_share:
                raise ConfigError(
                    f"prompt_tokens={prompt_tokens} is for a budget that is a share of a prompt, "
                    f"and budget={budget} is not; leave it out"
                )
        model_fingerprint = fingerprint(model)
        shape = model_shape(model, valid, model_fingerprint)
        bound = bind_within_bytes(
            info,
            valid_budget,
            lambda bytes_per_token: bind_policy(
                valid,
                valid_budget,
                shape,
                bytes_per_token=bytes_per_token,
                prompt_tokens=prompt_tokens or 1,
            ),
            kv_dtype,
            shares_slots=shares_slots_on(model.device),
        )
        backend: Backend | None = "inductor" if compile else None
        kernels = model.device.type == "cpu" and _try_kernels(warn=compile)
        self._runner = Runner(
            model,
            bound,
            max_sequences,
            backend,
            kv_dtype,
            weights,
            kernels=kernels,
            model_fingerprint=model_fingerprint,
        )
        self._scheduler = Scheduler(self._runner, chunk_size)

    def __repr__(self) -> str:
        in_use = f"{self._scheduler.num_running} of {len(self._runner.cache.sequences)}"
        return f"Engine({self.policy}, {in_use} batch slots in use, {self.num_bytes:,} bytes)"

    @property
    def policy(self) -> BoundPolicy:
        """Policy and capacity of every sequence."""
        return self._runner.layout.bound

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values of all batch slots, which never change."""
        return self._runner.cache.num_bytes

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes of keys and values of one sequence, however long it gets."""
        return self._runner.layout.bytes_per_sequence

    @property
    def held_bytes(self) -> int:
        """Bytes of the tokens that all sequences hold now, of `num_bytes`."""
        return sum(map(self._runner.held_bytes, self._runner.cache.sequences))

    @property
    def layout(self) -> CacheLayout:
        """Head groups, layers, types and bytes of the cache."""
        return self._runner.layout

    @property
    def kind(self) -> str:
        """A digest of model, policy and types: engines of one kind share snapshots."""
        return snapshot_kind(self._runner)

    @property
    def num_free(self) -> int:
        """Batch slots that no sequence has or waits for."""
        return self._scheduler.num_free

    @property
    def fused(self) -> bool:
        """Whether decode steps are one call of a CPU kernel, which needs no compilation.

        So it is on CPU for a model with blocks like Llama's, with packed weights, or with others in
        up to 8 batch slots, if a C++ compiler could compile the kernels.
        """
        return self._runner.fused

    @property
    def compile_seconds(self) -> float | None:
        """How long the first compiled step took; None before it, and without compilation."""
        return self._runner.compile_seconds

    @property
    def scheduler(self) -> Scheduler:
        """The queue and the batch slots, for hosts that make their own sequences."""
        return self._scheduler

    def warm_up(self) -> None:
        """Compile now, if compilation is on, and not at the first token."""
        self._runner.warm_up()

    def open(self, sampling: Sampling | None = None) -> Session:
        """Return a new session, in a batch slot of its own.

        Args:
            sampling: how tokens are chosen; greedy by default.

        Raises:
            UnsupportedOperationError: all batch slots are in use.
        """
        return self._open(Sampler(sampling), None)

    def submit(
        self,
        tokens: TokenSequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
        top_logprobs: int | None = None,
    ) -> SequenceStream:
        """Queue a prompt; it runs as soon as a batch slot is free, and frees the slot at its end.

        It runs while tokens of any sequence are taken, up to 1,024 tokens ahead of its own reader.
        A stream without references is closed.

        Args:
            tokens: the prompt [Q], Q >= 1.
            max_new_tokens: most tokens to yield; None is without end, 0 only prefills.
            sampling: how tokens are chosen; greedy by default.
            eos_token_ids: tokens that end the stream; the one that did is yielded too.
            on_progress: called after each prefilled chunk with its number of tokens.
            top_logprobs: how many of the likeliest tokens the stream's `logprobs` lists beside the
                token taken last; 0 lists that token alone, None turns log probabilities off.

        Raises:
            InputError: an empty prompt, or tokens that the model does not have.
            ConfigError: a negative number of tokens.
        """
        sequence = Sequence(
            sampler=Sampler(sampling),
            to_prefill=validate_tokens(tokens, self._runner.vocab_size),
            max_new_tokens=validate_count("max_new_tokens", max_new_tokens),
            eos_token_ids=validate_eos_token_ids(eos_token_ids),
            top_logprobs=validate_count("top_logprobs", top_logprobs),
            lookahead=_LOOKAHEAD,
            on_progress=on_progress,
        )
        if len(sequence.to_prefill) == 0:
            raise InputError("the prompt is empty and at least 1 token is needed; give some text")
        self._scheduler.add(sequence)
        return SequenceStream(sequence, self._scheduler)

    def step(self) -> bool:
        """Prefill one chunk of one prompt, and generate a token for every decoding sequence.

        Returns:
            Whether there was anything to do.
        """
        return self._scheduler.step()

    def validate_snapshot(self, snapshot: Snapshot) -> None:
        """Validate that `resume` accepts a snapshot; from any thread.

        Raises:
            InputError: it is of another model, type or policy, or inconsistent.
        """
        validate_snapshot(snapshot, self._runner)

    def resume(self, snapshot: Snapshot, sampling: Sampling | None = None) -> Session:
        """Return a session that continues from a snapshot, in a batch slot of its own.

        On the same machine and versions, in an engine with as many batch slots, it continues bit
        for bit.

        Args:
            snapshot: of a session of this engine, or of one with the same model and policy.
            sampling: how tokens are chosen from now on; None continues as the session did, random
                numbers included.

        Raises:
            InputError: it is of another model (by its shape and some 32 weights of each matrix),
                type or policy, or inconsistent.
            UnsupportedOperationError: all batch slots are in use.
        """
        # A snapshot that does not fit is refused as such, even if no batch slot is free.
        validate_snapshot(snapshot, self._runner)
        return self._open(new_sampler(snapshot, sampling), snapshot)

    def load(self, path: str | PathLike[str], sampling: Sampling | None = None) -> Session:
        """Return a session that continues from a snapshot file.

        Args:
            path: of a file that `Session.save` wrote.
            sampling: as for `resume`.

        Raises:
            InputError: the file cannot be read, is no snapshot, or is damaged; or it is of another
                version, model, type or policy.
            UnsupportedOperationError: all batch slots are in use.
        """
        return self.resume(Snapshot.load(path), sampling)

    def _open(self, sampler: Sampler, snapshot: Snapshot | None) -> Session:
        # A session that has not generated yet stands as one that has ended.
        sequence = Sequence(sampler=sampler, keeps_slot=True, finish_reason="length")
        self._scheduler.open(sequence, snapshot)
        return Session(self._scheduler, sequence)


def _try_kernels(*, warn: bool) -> bool:
    """Return whether the CPU kernels are loaded; those who asked for them get a warning if not."""
    try:
        load_kernels()
    except CompilerError as error:
        if warn:
            warnings.warn(
                f"{error}; until then torch's own products are used, which are slower",
                stacklevel=3,
            )
        return False
    return True

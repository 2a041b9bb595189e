"""Many endless sequences over one model, in memory that is known before the first token."""

import warnings
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import Any, final

from torch import Tensor

from lacache.cache.static.fit import fit_bytes
from lacache.cache.static.row_state import put_row
from lacache.common.validation import validate_int
from lacache.engine.checked import (
    checked_ends,
    checked_length,
    checked_tokens,
    checked_top_logprobs,
)
from lacache.engine.cpu.build import load_kernels
from lacache.engine.request import Request
from lacache.engine.runner import Backend, Runner
from lacache.engine.sampler import Sampler
from lacache.engine.sampling import Sampling
from lacache.engine.scheduler import Scheduler
from lacache.engine.session import Session
from lacache.engine.snapshot import Snapshot, new_sampler, snapshot_kind, validate_snapshot
from lacache.engine.token_stream import TokenStream
from lacache.errors import CompilerError, ConfigError, InputError
from lacache.models.fingerprint import model_shape
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

# Others wait for a segment; alone, only its masks grow with its length.
_SEGMENT, _SEGMENT_ALONE = 128, 1024
_AHEAD = 1024


@final
class Engine:
    """Reads and writes up to `rows` sequences side by side.

    Every call of `step` reads one segment of one prompt, and adds one token to each sequence that
    writes. So a long prompt makes the others wait for one segment at a time. All rows are computed
    in every step, in use or not: what a sequence says never depends on who else is there.

    An engine, its sessions and its streams belong to one thread. A session holds its row until it
    is closed.

        engine = Engine(model, budget=512, rows=4)
        streams = [engine.submit(prompt, max_new_tokens=100) for prompt in prompts]
        texts = [list(stream) for stream in streams]

    Args:
        model: a causal language model of transformers, on one device; it stays as it is, and its
            weights are shared, not copied.
        budget: tokens per layer, or bytes of one sequence such as "64MiB"; both count keys twice
            where positions move them (docs/adr/0009). A share needs `prompt_tokens`.
        policy: which tokens are kept, as an object or as text; see `LaCache`.
        prompt_tokens: length of the prompt of which the budget is a share.
        rows: sequences side by side. All memory for them is taken now: `num_bytes`.
        segment: most tokens of a prompt in one forward. By default 128, or 1,024 where there is
            one row, since nobody waits.
        kv_dtype: "int8" or "float8_e4m3fn" stores keys and values in eight bits with a scale for
            each token and head; None is the model's own type. What it costs in quality:
            docs/performance.md.
        weights: "int8" quantizes the linear layers, in a copy; None takes the model's weights.
        compile: compile the step with torch.compile, and on CPU the kernels for one token and for
            compactions with a C++ compiler. The first step then takes seconds, or minutes where
            nothing like it was compiled before; each later one is faster. Where either fails, a
            warning says why and steps run without it.

    Raises:
        ConfigError: an option cannot work for this model.
        MissingExtraError: `weights` without the extra "int8".
        UnsupportedModelError: the model is not understood; `LaCache` may take it.
    """

    def __init__(
        self,
        model: Any,
        budget: BudgetLike | None = None,
        policy: Policy | str = DEFAULT_POLICY,
        *,
        prompt_tokens: int | None = None,
        rows: int = 1,
        segment: int | None = None,
        kv_dtype: str | None = None,
        weights: str | None = None,
        compile: bool = False,
    ) -> None:
        validate_int("rows", rows, 1)
        if segment is not None:
            validate_int("segment", segment, 1)
        info = model_info(model)
        valid = parse_policy(policy)
        valid_budget = validate_budget(valid, budget)
        if valid_budget is not None and valid_budget.share and prompt_tokens is None:
            raise ConfigError(
                f"budget={budget} is a share of a prompt, and an engine prefills many prompts; try "
                "512 (tokens) or '64MiB' (bytes), or give prompt_tokens"
            )
        shape = model_shape(model, valid)
        bound = fit_bytes(
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
        )
        backend: Backend | None = "inductor" if compile else None
        kernels = compile and model.device.type == "cpu"
        if kernels:
            try:
                load_kernels()
            except CompilerError as error:
                warnings.warn(
                    f"{error}; until then torch's own products are used, which are slower",
                    stacklevel=2,
                )
                kernels = False
        self._runner = Runner(model, bound, rows, backend, kv_dtype, weights, kernels=kernels)
        chunk = segment or (_SEGMENT if rows > 1 else _SEGMENT_ALONE)
        self._scheduler = Scheduler(self._runner, chunk)

    def __repr__(self) -> str:
        return (
            f"Engine({self.policy}, {self._scheduler.num_open} of {len(self._runner.store.rows)} "
            f"rows in use, {self.num_bytes:,} bytes)"
        )

    @property
    def policy(self) -> BoundPolicy:
        """Policy and capacity of every sequence."""
        return self._runner.shape.bound

    @property
    def num_bytes(self) -> int:
        """Of keys and values of all rows, the same from the first to the last token."""
        return self._runner.store.num_bytes

    @property
    def row_bytes(self) -> int:
        """Of keys and values of one sequence, however long it gets."""
        return self._runner.shape.row_bytes

    @property
    def kind(self) -> str:
        """A digest of model, plan and types: engines of one kind resume each other's snapshots."""
        return snapshot_kind(self._runner)

    @property
    def num_free(self) -> int:
        """Rows that nobody has or waits for."""
        return self._scheduler.num_free

    @property
    def compile_seconds(self) -> float | None:
        """What the first compiled step took; None before it, and without compilation."""
        return self._runner.compile_seconds

    def warm_up(self) -> None:
        """Compile now, where that is wanted, and not at the first token."""
        self._runner.warm_up()

    def open(self, sampling: Sampling | None = None) -> Session:
        """A new session, in a row of its own.

        Args:
            sampling: how tokens are chosen; greedy by default.

        Raises:
            UnsupportedOperationError: all rows are in use.
        """
        opened = self._scheduler.open(Sampler(sampling))
        return Session(self._scheduler, opened)

    def submit(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
        top_logprobs: int | None = None,
    ) -> TokenStream:
        """Read a prompt and write on, as soon as a row is free; the row is given back at the end.

        It is written while anybody's tokens are taken, up to 1,024 tokens ahead of its own reader.
        A stream that nobody holds any more is closed.

        Args:
            tokens: the prompt [Q], Q >= 1.
            max_new_tokens: how many tokens to yield at most; None is without end, 0 only reads.
            sampling: how tokens are chosen; greedy by default.
            eos_token_ids: tokens that end the stream; the one that did is yielded too.
            on_progress: called with the number of tokens after each segment that was read.
            top_logprobs: how many of the likeliest tokens the stream's `logprobs` tells beside the
                one that was taken last; 0 tells of that one alone, None of none.

        Raises:
            InputError: an empty prompt, or no tokens of this model.
            ConfigError: a negative number of tokens.
        """
        request = Request(
            checked_tokens(tokens, self._runner.vocab_size),
            checked_length(max_new_tokens),
            checked_ends(eos_token_ids),
            ahead=_AHEAD,
            gives_row_back=True,
            on_progress=on_progress,
            top_logprobs=checked_top_logprobs(top_logprobs),
        )
        if len(request.unread) == 0:
            raise InputError("the prompt is empty and at least 1 token is needed; give some text")
        return self._scheduler.submit(request, Sampler(sampling))

    def step(self) -> bool:
        """Read one segment of one prompt, and write a token of every sequence that wants one.

        Returns:
            Whether there was anything to do.
        """
        return self._scheduler.step()

    def check(self, snapshot: Snapshot) -> None:
        """Check whether `resume` can go on from a snapshot; from any thread.

        Raises:
            InputError: it is of another model, type or plan, or says what cannot be.
        """
        validate_snapshot(snapshot, self._runner)

    def resume(self, snapshot: Snapshot, sampling: Sampling | None = None) -> Session:
        """A session that goes on, in a row of its own, from where another stood.

        On the same machine and versions, in an engine with as many rows, it goes on bit for bit.

        Args:
            snapshot: of a session of this engine, or of one with the same model and plan.
            sampling: how tokens are chosen from now on; None goes on as the session did, random
                numbers included.

        Raises:
            InputError: it is of another model (by its shape and some 32 weights of each matrix),
                type or plan, or says what cannot be.
            UnsupportedOperationError: all rows are in use.
        """
        self.check(snapshot)
        opened = self._scheduler.open(new_sampler(snapshot, sampling))
        try:
            put_row(self._runner.store, opened.index, snapshot.row)
        except BaseException:
            self._scheduler.close(opened)
            raise
        opened.last, logits = snapshot.last, snapshot.logits
        opened.logits = None if logits is None else logits.to(self._runner.store.device)
        return Session(self._scheduler, opened)

    def load(self, path: str | PathLike[str], sampling: Sampling | None = None) -> Session:
        """The same, from a file.

        Args:
            path: of a file that `Session.save` has written.
            sampling: as for `resume`.

        Raises:
            InputError: the file cannot be read, is no snapshot, is damaged; or it is of another
                version, model, type or plan.
            UnsupportedOperationError: all rows are in use.
        """
        return self.resume(Snapshot.load(path), sampling)

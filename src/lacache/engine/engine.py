"""Many endless sequences over one model, in memory that is known before the first token."""

import reprlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.choice import choose_plan
from lacache.cache.facts import model_facts
from lacache.cache.report import CacheReport, make_report
from lacache.cache.static.fit import fit_bytes
from lacache.cache.static.row import Row
from lacache.cache.static.row_state import put_row
from lacache.core.budget import Budget, parse_budget
from lacache.core.checks import check_int
from lacache.core.errors import ConfigError, InputError, ModelError, UnsupportedOperationError
from lacache.core.kept import kept_after
from lacache.core.schedule import Plan
from lacache.engine.request import Request
from lacache.engine.runner import Backend, Runner
from lacache.engine.sampling import Sampler, Sampling
from lacache.engine.scoring import score
from lacache.engine.session import Session
from lacache.engine.snapshot import load_snapshot, save_snapshot
from lacache.engine.token_stream import TokenStream

_SEGMENT = 128
_AHEAD = 1024


@final
class Engine:
    """Reads and writes up to `rows` sequences side by side; made by `Engine.from_model`.

    Every call of `step` reads one segment of one prompt, and adds one token to each sequence that
    writes. So a long prompt makes the others wait for one segment at a time. All rows are computed
    in every step, in use or not: what a sequence says never depends on who else is there.

        engine = Engine.from_model(model, budget=512, rows=4)
        streams = [engine.submit(prompt, max_new_tokens=100) for prompt in prompts]
        texts = [list(stream) for stream in streams]
    """

    def __init__(self, runner: Runner, segment: int | None) -> None:
        """Not for users: make one with `Engine.from_model`."""
        self._runner = runner
        self._segment = segment
        self._free = deque(range(len(runner.store.rows)))
        self._open: list[Session] = []
        self._reading: deque[Session] = deque()
        self._waiting: deque[tuple[Request, Sampler]] = deque()
        self._dropped: deque[Request] = deque()

    @classmethod
    def from_model(
        cls,
        model: Any,
        config: Plan | Budget | None = None,
        *,
        budget: Budget | None = None,
        preset: str | None = None,
        policy: str | None = None,
        span: int | None = None,
        overlap: int | None = None,
        sinks: int | None = None,
        recent: int | None = None,
        refill: int | None = None,
        geometry: str | None = None,
        unit: int | None = None,
        window_layers: Iterable[int] | None = None,
        rows: int = 1,
        segment: int | None = None,
        compile: bool = False,
    ) -> "Engine":
        """An engine for `model`, a causal language model of transformers, which stays as it is.

        Args:
            model: on one device; its weights are shared, not copied.
            config: a policy, a HistoryConfig, Groups, or a budget.
            budget: tokens per layer, or bytes of one sequence such as "64MiB"; both count keys
                twice where positions move them (docs/adr/0009). A share needs the length of a
                prompt, and prompts differ.
            preset: see `LaCache.from_model`, as for the options up to `window_layers`.
            policy: "ladder" or "streaming" instead of a preset.
            span: of a ladder.
            overlap: of a ladder.
            sinks: first tokens, never evicted.
            recent: newest tokens that no compaction touches.
            refill: slots that one compaction frees.
            geometry: "interleaved" or "consecutive".
            unit: neighbouring tokens kept or dropped together.
            window_layers: layers that keep a window.
            rows: sequences side by side. All memory for them is taken now: `num_bytes`.
            segment: most tokens of a prompt that are read at once. By default 128, or as many as
                fit where there is one row, since nobody waits.
            compile: compile the step with torch.compile. The first step then takes seconds, or
                minutes where nothing like it was compiled before; each later one is faster.

        Raises:
            ConfigError: an option cannot work for this model.
            UnsupportedModelError: the model is not understood; `LaCache` may take it.
        """
        check_int("rows", rows, 1)
        if segment is not None:
            check_int("segment", segment, 1)
        facts = model_facts(model)
        for given in (config, budget):
            if given is not None and not isinstance(given, Plan) and parse_budget(given).share:
                raise ConfigError(
                    f"budget={given} is a share of a prompt, and an engine reads many prompts; try "
                    "512 (tokens) or '64MiB' (bytes)"
                )
        options = {
            "span": span,
            "overlap": overlap,
            "sinks": sinks,
            "recent": recent,
            "refill": refill,
            "geometry": geometry,
            "unit": unit,
            "window_layers": window_layers or None,
        }

        def choose(bytes_per_token: int) -> Plan:
            return choose_plan(
                model,
                config,
                budget=budget,
                preset=preset,
                policy=policy,
                options=options,
                bytes_per_token=bytes_per_token,
            )(1)

        given_budget = budget if isinstance(config, Plan) or config is None else config
        plan = fit_bytes(facts, given_budget, choose)
        backend: Backend | None = "inductor" if compile else None
        runner = Runner(model, plan, rows, backend)
        return cls(runner, _SEGMENT if segment is None and rows > 1 else segment)

    def __repr__(self) -> str:
        used = len(self._open)
        return (
            f"Engine({self.plan}, {used} of {len(self._runner.store.rows)} rows in use, "
            f"{self.num_bytes:,} bytes)"
        )

    @property
    def plan(self) -> Plan:
        """What every sequence keeps."""
        return self._runner.shape.plan

    @property
    def num_bytes(self) -> int:
        """Of keys and values of all rows, the same from the first to the last token."""
        return self._runner.store.num_bytes

    @property
    def row_bytes(self) -> int:
        """Of keys and values of one sequence, however long it gets."""
        return self._runner.shape.row_bytes

    @property
    def num_free(self) -> int:
        """Rows that nobody has or waits for."""
        self._admit()
        return len(self._free)

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
        return self._open_row(Sampler(sampling or Sampling()))

    def submit(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
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

        Raises:
            InputError: an empty prompt, or no tokens of this model.
            ConfigError: a negative number of tokens.
        """
        request = Request(
            self._checked(tokens),
            _checked_length(max_new_tokens),
            _checked_ends(eos_token_ids),
            ahead=_AHEAD,
            gives_row_back=True,
            on_progress=on_progress,
        )
        if len(request.unread) == 0:
            raise InputError("the prompt is empty and at least 1 token is needed; give some text")
        self._waiting.append((request, Sampler(sampling or Sampling())))
        return self._stream(request)

    def step(self) -> bool:
        """Read one segment of one prompt, and write a token of every sequence that wants one.

        Returns:
            Whether there was anything to do.
        """
        self._admit()
        has_read = self._read_segment()
        has_written = self._write_tokens()
        has_chosen = self._choose_ahead()
        return has_read or has_written or has_chosen

    def write(
        self,
        session: Session,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None,
        eos_token_ids: Collection[int],
        on_progress: Callable[[int], None] | None,
    ) -> TokenStream:
        """See `Session.write`."""
        self._check_idle(session)
        last = [] if session.last is None else [session.last]
        unread = torch.cat([torch.tensor(last, dtype=torch.long), self._checked(tokens)])
        if len(unread) == 0 and session.logits is None:
            raise InputError("there is no token to go on from; give at least 1 token")
        request = Request(
            unread,
            _checked_length(max_new_tokens),
            _checked_ends(eos_token_ids),
            # Its reader may stop anywhere, and a token not taken would have moved the sampler on.
            ahead=0,
            gives_row_back=False,
            on_progress=on_progress,
        )
        self._begin(session, request)
        return self._stream(request)

    def score(
        self,
        session: Session,
        tokens: Sequence[int] | Tensor,
        *,
        chunk: int,
        on_progress: Callable[[int], None] | None,
    ) -> Tensor:
        """See `Session.score`."""
        self._check_idle(session)
        check_int("chunk", chunk, 1)
        checked = self._checked(tokens)
        if len(checked) == 0:
            raise InputError("0 tokens cannot be scored; give at least 1")
        if session.last is not None:
            raise UnsupportedOperationError(
                f"the model has not read the newest token {session.last}; give it first to "
                "write, with max_new_tokens=0, or take it out with drop_last()"
            )

        def note(piece: Tensor, logits: Tensor) -> None:
            # A copy, since they are part of those of all the piece.
            session.logits = logits.clone()
            session.sampler.see(piece)

        return score(
            self._runner,
            session.row,
            session.logits,
            checked,
            chunk=chunk,
            on_read=note,
            on_progress=on_progress,
        )

    def fork(self, session: Session) -> Session:
        """See `Session.fork`."""
        self._check_idle(session)
        copy = self._open_row(session.sampler.fork())
        self._runner.store.fork(session.row, copy.row)
        copy.last, copy.logits = session.last, session.logits
        return copy

    def save(self, session: Session, path: str | PathLike[str]) -> None:
        """See `Session.save`."""
        self._check_idle(session)
        save_snapshot(
            Path(path), self._runner, session.row, session.sampler, session.last, session.logits
        )

    def load(self, path: str | PathLike[str]) -> Session:
        """A session that goes on, in a row of its own, from where it stood when it was saved.

        On the same machine and versions, in an engine with as many rows, it goes on bit for bit.

        Args:
            path: of a file that `Session.save` has written.

        Raises:
            InputError: the file cannot be read, is no snapshot, is damaged; or it is of another
                version, model, type or plan.
            UnsupportedOperationError: all rows are in use.
        """
        snapshot = load_snapshot(Path(path), self._runner)
        session = self._open_row(snapshot.sampler)
        try:
            put_row(self._runner.store, session.row, snapshot.row)
        except BaseException:
            self.close(session)
            raise
        session.last, session.logits = snapshot.last, snapshot.logits
        return session

    def num_seen(self, session: Session) -> int:
        """See `Session.num_seen`."""
        self._check_open(session)
        return self._row(session).num_seen

    def report(self, session: Session) -> CacheReport:
        """See `Session.report`."""
        self._check_open(session)
        row = self._row(session)
        return make_report(
            self._runner.shape.groups,
            [kept_after(group.schedule, row.num_seen) for group in row.groups],
            compactions=max(group.num_compactions for group in row.groups),
            num_bytes=self.row_bytes,
        )

    def drop_last(self, session: Session) -> None:
        """See `Session.drop_last`."""
        self._check_idle(session)
        session.last = None

    def close(self, session: Session) -> None:
        """See `Session.close`."""
        if session not in self._open:
            return
        if session.request is not None:
            session.request.stopped_by = session.request.stopped_by or "closed"
        if session in self._reading:
            self._reading.remove(session)
        self._open.remove(session)
        self._runner.store.clear(session.row)
        self._free.append(session.row)

    def _admit(self) -> None:
        """Take the rows of dropped streams back, and give free ones to those that wait."""
        while self._dropped:
            self._end(self._dropped.popleft())
        while self._waiting and self._free:
            request, sampler = self._waiting.popleft()
            self._begin(self._take_row(sampler), request)

    def _open_row(self, sampler: Sampler) -> Session:
        self._admit()
        if not self._free:
            raise UnsupportedOperationError(
                f"all {len(self._open)} rows are in use; close a session, use submit, which waits, "
                "or make the engine with more rows"
            )
        return self._take_row(sampler)

    def _take_row(self, sampler: Sampler) -> Session:
        session = Session(self, self._free.popleft(), sampler)
        self._open.append(session)
        return session

    def _stream(self, request: Request) -> TokenStream:
        return TokenStream(
            request,
            lambda: self._advance(request),
            lambda: self._end(request),
            lambda: self._dropped.append(request),
        )

    def _begin(self, session: Session, request: Request) -> None:
        session.request = request
        if request.is_reading:
            self._reading.append(session)
        else:
            request.end_if_long_enough()

    def _advance(self, request: Request) -> bool:
        """Bring a request nearer to its next token; whether there was anything to do."""
        session = self._session_of(request)
        if session is not None:
            self._row(session).check_whole()
            if request.is_writing and session.logits is not None:
                self._choose(session, request, session.logits)
                return True
        return self.step()

    def _read_segment(self) -> bool:
        session = next((s for s in self._reading if not self._row(s).is_moving), None)
        if session is None:
            return False
        request = session.request
        assert request is not None  # sessions in this queue have one
        # The next segment is another's, even if this one fails.
        self._reading.remove(session)
        self._reading.append(session)
        room = self._row(session).room()
        length = min(len(request.unread), room, self._segment or room)
        segment = request.unread[:length]
        logits = self._runner.read(session.row, segment)
        request.unread = request.unread[length:]
        session.last, session.logits = None, logits
        session.sampler.see(segment)
        if not request.is_reading:
            self._reading.remove(session)
            request.end_if_long_enough()
            self._finish(session, request)
        if request.on_progress is not None:
            request.on_progress(length)
        return True

    def _write_tokens(self) -> bool:
        writing = {
            s.row: (s, s.last)
            for s in self._open
            if s.request is not None
            and s.request.wants_logits
            and s.last is not None
            # One that was interrupted half-way is refused to its own reader alone.
            and not self._row(s).is_moving
        }
        if not writing:
            return False
        tokens = [0] * len(self._runner.store.rows)
        for row, (_, last) in writing.items():
            tokens[row] = last
        logits = self._runner.step(tokens, list(writing))
        for row, (session, _) in writing.items():
            # A copy, since a compiled step may write over its output.
            session.last, session.logits = None, logits[row].clone()
        return True

    def _choose_ahead(self) -> bool:
        """Choose tokens that nobody has asked for yet."""
        has_chosen = False
        for session in list(self._open):
            request = session.request
            if request is None or not request.wants_choice or session.logits is None:
                continue
            # What cannot be chosen stays, and its own reader meets the error.
            with suppress(ModelError):
                self._choose(session, request, session.logits)
                has_chosen = True
        return has_chosen

    def _choose(self, session: Session, request: Request, logits: Tensor) -> None:
        token = session.sampler.choose(logits[None])
        session.last, session.logits = token, None
        request.add(token)
        self._finish(session, request)

    def _finish(self, session: Session, request: Request) -> None:
        if request.stopped_by is not None and request.gives_row_back:
            self.close(session)

    def _end(self, request: Request) -> None:
        """Stop a request before its end; what was not taken was not written."""
        request.cancel()
        self._waiting = deque(pair for pair in self._waiting if pair[0] is not request)
        session = self._session_of(request)
        if session is not None:
            if session in self._reading:
                self._reading.remove(session)
            self._finish(session, request)

    def _row(self, session: Session) -> Row:
        return self._runner.store.rows[session.row]

    def _session_of(self, request: Request) -> Session | None:
        return next((s for s in self._open if s.request is request), None)

    def _checked(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """A copy of tokens [Q] of this model, on the CPU."""
        rule = "must be a list or a tensor of whole numbers; try tokenizer(text).input_ids"
        try:
            given = torch.as_tensor(tokens)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"tokens={reprlib.repr(tokens)} {rule}") from error
        if given.ndim != 1:
            raise InputError(
                f"tokens of shape {tuple(given.shape)} must be of shape [tokens]; give one text at "
                "a time, in a flat list or tensor"
            )
        is_whole = not (given.is_floating_point() or given.is_complex())
        if len(given) and (not is_whole or given.dtype == torch.bool):
            raise InputError(f"tokens of type {given.dtype} {rule}")
        checked = given.to("cpu", torch.long, copy=True)
        vocab_size = self._runner.vocab_size
        if len(checked) and not 0 <= int(checked.min()) <= int(checked.max()) < vocab_size:
            raise InputError(
                f"token ids from {int(checked.min())} to {int(checked.max())} must lie in 0 to "
                f"{vocab_size - 1}; use the tokenizer of this model"
            )
        return checked

    def _check_open(self, session: Session) -> None:
        if session not in self._open:
            raise UnsupportedOperationError(
                "the session is closed and its row belongs to another; open a new one"
            )

    def _check_idle(self, session: Session) -> None:
        self._admit()
        self._check_open(session)
        if session.request is not None and not session.request.is_done:
            raise UnsupportedOperationError(
                "the session is still writing; take its stream to the end, or close the stream"
            )


def _checked_ends(eos_token_ids: Collection[int]) -> frozenset[int]:
    try:
        return frozenset(index(token) for token in eos_token_ids)
    except TypeError as error:
        raise InputError(
            f"eos_token_ids={eos_token_ids!r} must be token ids in a list or a set; try "
            "[tokenizer.eos_token_id]"
        ) from error


def _checked_length(max_new_tokens: int | None) -> int | None:
    if max_new_tokens is not None:
        check_int("max_new_tokens", max_new_tokens, 0)
    return max_new_tokens

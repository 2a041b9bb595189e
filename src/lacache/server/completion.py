"""One completion of a request: its sequence in the engine, its text, and its events."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from lacache.engine.detokenizer import Detokenizer, StopStrings
from lacache.engine.sampler import Sampler, TokenLogprobs
from lacache.engine.sampling import Sampling
from lacache.engine.scheduler import Scheduler
from lacache.engine.sequence import Sequence
from lacache.engine.snapshot import Snapshot

FinishReason = Literal["stop", "length"]


@final
@dataclass(frozen=True)
class Started:
    """The sequence has a batch slot.

    Args:
        num_seen: tokens that the model has processed before, of the session or of the prompt.
        num_reused: how many of them are tokens of the prompt, found in the prefix cache.
    """

    num_seen: int
    num_reused: int


@final
@dataclass(frozen=True)
class Prefilled:
    """A chunk of the prompt was prefilled."""

    num_tokens: int


@final
@dataclass(frozen=True)
class Token:
    """A generated token.

    Args:
        id: token id.
        offset: number of characters of the completion before its text.
        text: text that it completes; empty for the first tokens of a character.
        logprobs: log probabilities, if the request asks for them.
    """

    id: int
    offset: int
    text: str
    logprobs: TokenLogprobs | None


@final
@dataclass(frozen=True)
class Delta:
    """Text that no later token can change, never empty, and the tokens since the last delta."""

    text: str
    tokens: tuple[Token, ...]


@final
@dataclass(frozen=True)
class Finished:
    """The end of a completion.

    Args:
        reason: "stop" at an end-of-sequence token or a stop string, else "length".
        num_new: number of generated tokens, including the one that ended the sequence.
        tokens: tokens without text since the last delta.
    """

    reason: FinishReason
    num_new: int
    tokens: tuple[Token, ...]


@final
@dataclass(frozen=True)
class Failed:
    """The completion ended early.

    Args:
        error: the reason.
        num_new: number of generated tokens.
    """

    error: Exception
    num_new: int = 0


Event = Started | Prefilled | Delta | Finished | Failed


class StateStore(ABC):
    """Store of the states that sequences continue from; used in the engine's thread."""

    @abstractmethod
    def find_snapshot(self, prompt: Tensor) -> tuple[Snapshot | None, int]:
        """Return the state that a prompt [Q] continues from, and how many of its tokens it has."""

    @abstractmethod
    def on_prompt_done(self, prompt: Tensor, snapshot: Callable[[], Snapshot]) -> None:
        """Store the state after the prompt [Q], if it is of use; `snapshot` returns it."""

    @abstractmethod
    def on_end(
        self, tokens: Tensor, sequence: Sequence, snapshot: Callable[[], Snapshot]
    ) -> Callable[[], None] | None:
        """Store the state at the end.

        Args:
            tokens: prompt and completion [Q].
            sequence: may still have the last of them to process.
            snapshot: returns the state.

        Returns:
            What is left to do before the end is reported, in another thread, since it takes long.
        """

    @abstractmethod
    def release(self) -> None:
        """Let other requests continue the state; idempotent, and for any thread."""


@final
class Completion:
    """A completion of a prompt, run by `EngineThread` in its thread; `abort` is for any thread.

    Args:
        prompt: token ids [Q], int64 on the CPU; of a session those that are new. Not written to.
        sampling: how tokens are chosen.
        scheduler: of the engine; used in the engine's thread alone.
        max_new_tokens: most tokens to generate, at least 1.
        eos_token_ids: tokens that end the sequence.
        stops: strings that end the text; of this completion alone.
        detokenizer: of this completion alone.
        store: the prefix cache, or the lease of a session; the sequence continues from a state
            that it has, and its own state goes there at the end.
        emit: called with every event, from other threads; must return at once. The last event is
            `Finished` or `Failed`.
        seconds: time limit from now on.
        top_logprobs: how many of the likeliest tokens to report with each; None reports none.
    """

    def __init__(
        self,
        prompt: Tensor,
        sampling: Sampling,
        *,
        scheduler: Scheduler,
        max_new_tokens: int,
        eos_token_ids: frozenset[int],
        stops: StopStrings,
        detokenizer: Detokenizer,
        store: StateStore,
        emit: Callable[[Event], None],
        seconds: float,
        top_logprobs: int | None = None,
    ) -> None:
        self.emit = emit
        self._prompt = prompt
        self._store = store
        self._num_reused = 0
        self._stops = stops
        self._detokenizer = detokenizer
        self._deadline = time.monotonic() + seconds
        self.is_aborted = False
        """Whether it is not read any more."""
        self._scheduler = scheduler
        self._new: list[int] = []
        self._pending: list[Token] = []
        self._num_characters = 0
        self._sequence = Sequence(
            sampler=Sampler(sampling),
            to_prefill=prompt,
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos_token_ids,
            top_logprobs=top_logprobs,
            # Tokens are taken after each step, so one may be sampled within it.
            lookahead=1,
            keeps_slot=True,
            on_progress=self._on_progress,
            find_snapshot=self._find_snapshot,
            on_start=lambda num_seen: emit(Started(num_seen, self._num_reused)),
        )
        self._snapshot = partial(scheduler.snapshot, self._sequence)

    @property
    def num_new(self) -> int:
        """Generated tokens so far."""
        return len(self._new)

    @property
    def has_slot(self) -> bool:
        """Whether the sequence has a batch slot."""
        return self._sequence.batch_slot is not None

    @property
    def is_expired(self) -> bool:
        """Whether it has reached its time limit."""
        return time.monotonic() > self._deadline

    def abort(self) -> None:
        """Set a flag; the engine thread ends the sequence before its next step."""
        self.is_aborted = True

    def start(self) -> None:
        """Queue the sequence."""
        self._scheduler.add(self._sequence)

    def advance(self) -> bool:
        """Emit the text that the last step completed; whether more may come.

        Raises:
            Exception: the sequence could not start, or its next token cannot be sampled.
        """
        sequence = self._sequence
        if sequence.error is not None and not sequence.new:
            raise sequence.error
        while sequence.new and self._stops.found is None:
            self._append(*sequence.new.popleft())
        if self._stops.found is None and sequence.finish_reason is None:
            return True
        self._emit_text(self._stops.push(self._detokenizer.flush()) + self._stops.flush())
        return False

    def last_event(self) -> Finished:
        """Return the last event of a completion that `advance` has brought to its end."""
        is_stop = self._stops.found is not None or self._sequence.finish_reason == "eos"
        return Finished("stop" if is_stop else "length", self.num_new, tuple(self._pending))

    def finish(self) -> Callable[[], None] | None:
        """End the sequence, store its state, and free its batch slot.

        A sequence that ends amid its prompt is not stored: a request without a reply leaves its
        session unchanged.

        Returns:
            What is left to do before the end is reported, in another thread, since it takes long.
        """
        sequence = self._sequence
        was_decoding = sequence.batch_slot is not None and len(sequence.to_prefill) == 0
        self._scheduler.abort(sequence)
        try:
            if not was_decoding:
                return None
            tokens = torch.cat([self._prompt, torch.tensor(self._new, dtype=torch.long)])
            return self._store.on_end(tokens, sequence, self._snapshot)
        finally:
            self._scheduler.release(sequence)

    def discard(self) -> None:
        """End the sequence without storing its state, and free its batch slot."""
        self._scheduler.abort(self._sequence)
        self._scheduler.release(self._sequence)

    def emit_last(self, event: Finished | Failed) -> None:
        """Let other requests use the session, and emit the last event; from any thread."""
        # In this order, since the client may send its next request to the session at once.
        self._store.release()
        self.emit(event)

    def _find_snapshot(self) -> Snapshot | None:
        snapshot, self._num_reused = self._store.find_snapshot(self._prompt)
        self._sequence.to_prefill = self._sequence.to_prefill[self._num_reused :]
        return snapshot

    def _on_progress(self, num_tokens: int) -> None:
        self.emit(Prefilled(num_tokens))
        if len(self._sequence.to_prefill):
            return
        try:
            self._store.on_prompt_done(self._prompt, self._snapshot)
        except Exception as error:
            # `advance` raises it: other sequences of the step are not concerned.
            self._sequence.error = error

    def _append(self, token: int, logprobs: TokenLogprobs | None) -> None:
        self._new.append(token)
        # The token that ends the sequence has no text, special or not.
        if token in self._sequence.eos_token_ids:
            return
        text = self._detokenizer.push(token)
        self._pending.append(Token(token, self._num_characters, text, logprobs))
        self._num_characters += len(text)
        self._emit_text(self._stops.push(text))

    def _emit_text(self, text: str) -> None:
        if text:
            self.emit(Delta(text, tuple(self._pending)))
            self._pending.clear()

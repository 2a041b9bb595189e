"""The new tokens of one sequence, as a stream that runs the engine."""

from typing import final

from lacache.engine.generator import TokenStream
from lacache.engine.sampler import TokenLogprobs
from lacache.engine.scheduler import Scheduler
from lacache.engine.sequence import Sequence
from lacache.errors import UnsupportedOperationError


@final
class SequenceStream(TokenStream):
    """Yields the new tokens of a sequence; taking one runs the engine until it is there.

    Closing it aborts the sequence, and discards the tokens that were not taken. A session then
    consists of the prefilled part of the prompt, of the yielded tokens, and of those that were
    sampled ahead of the reader, by the `lookahead` of `Session.generate`. A stream without
    references is closed.
    """

    def __init__(self, sequence: Sequence, scheduler: Scheduler) -> None:
        """Not for users: see `Engine.submit` and `Session.generate`."""
        self._sequence = sequence
        self._scheduler = scheduler
        self._logprobs: TokenLogprobs | None = None

    @property
    def logprobs(self) -> TokenLogprobs | None:
        """Log probabilities of the token taken last; None if they were not asked for."""
        return self._logprobs

    @property
    def finish_reason(self) -> str | None:
        """Why no more tokens come: "eos", "length" or "closed"; None while some may."""
        return None if self._sequence.new else self._sequence.finish_reason

    @property
    def num_ready(self) -> int:
        """Tokens sampled ahead of the reader."""
        return len(self._sequence.new)

    def __next__(self) -> int:
        sequence = self._sequence
        while not sequence.new:
            if sequence.finish_reason == "error" and sequence.error is not None:
                raise sequence.error
            if sequence.finish_reason is not None:
                raise StopIteration
            if (
                not self._scheduler.advance(sequence)
                and not sequence.new
                and sequence.finish_reason is None
            ):
                raise UnsupportedOperationError(
                    "the sequence waits for a batch slot, and all belong to open sessions or to "
                    "sequences that pause until their tokens are taken; close a session, or take "
                    "those tokens"
                )
        token, self._logprobs = sequence.new.popleft()
        return token

    def close(self) -> None:
        """Abort the sequence; idempotent."""
        self._scheduler.abort(self._sequence)

    def __del__(self) -> None:
        if not self._sequence.is_done:
            self._scheduler.abort_later(self._sequence)

"""One sequence that is read and written in turns, for as long as it is open."""

from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import final

import torch
from torch import Tensor

from lacache.cache.report import CacheReport, make_report
from lacache.common.validation import validate_int
from lacache.engine.checked import (
    checked_ends,
    checked_length,
    checked_tokens,
    checked_top_logprobs,
)
from lacache.engine.open_row import OpenRow
from lacache.engine.request import Request
from lacache.engine.scheduler import Scheduler
from lacache.engine.scoring import score
from lacache.engine.snapshot import Snapshot, take_snapshot
from lacache.engine.token_stream import TokenStream
from lacache.engine.writer import Writer
from lacache.errors import InputError, UnsupportedOperationError
from lacache.policies.kept import kept_after


@final
class Session(Writer):
    """A sequence with a row of its own; made by `Engine.open`, ended by `close` or a `with` block.

    The text so far is what was given to `write` and what its streams yielded.
    """

    def __init__(self, scheduler: Scheduler, opened: OpenRow) -> None:
        """Not for users: open one with `Engine.open`."""
        self._scheduler = scheduler
        self._runner = scheduler.runner
        self._opened = opened

    @property
    def num_seen(self) -> int:
        """Tokens that the model has read."""
        return self._scheduler.row(self._opened).num_seen

    def report(self) -> CacheReport:
        """What the session holds, and how much it has seen; bytes are those of its row."""
        row = self._scheduler.row(self._opened)
        return make_report(
            self._runner.shape.groups,
            [kept_after(group.schedule, row.num_seen) for group in row.groups],
            compactions=max(group.num_compactions for group in row.groups),
            num_bytes=self.num_bytes(),
        )

    def num_bytes(self) -> int:
        """Of its row, the same from the first to the last token."""
        return self._runner.shape.row_bytes

    def write(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
        top_logprobs: int | None = None,
        ahead: int = 0,
    ) -> TokenStream:
        """Add tokens to the text, and write on.

        The model reads and writes while tokens are taken, of this stream or of another.

        Args:
            tokens: new tokens [Q]; may be empty where there is a text to go on from.
            max_new_tokens: how many tokens to yield at most; None is without end, 0 only reads.
            eos_token_ids: tokens that end the stream; the one that did is yielded too.
            on_progress: called with the number of tokens after each segment that was read.
            top_logprobs: how many of the likeliest tokens the stream's `logprobs` tells beside the
                one that was taken last; 0 tells of that one alone, None of none.
            ahead: tokens that may be chosen before they are asked for, while others are. They
                belong to the text, taken or not.

        Raises:
            InputError: nothing to read, or no tokens of this model.
            ConfigError: a negative number of tokens.
            UnsupportedOperationError: an earlier stream has not ended.
        """
        validate_int("ahead", ahead, 0)
        opened = self._opened
        self._scheduler.validate_idle(opened)
        last = [] if opened.last is None else [opened.last]
        unread = torch.cat([torch.tensor(last, dtype=torch.long), self._checked(tokens)])
        if len(unread) == 0 and opened.logits is None:
            raise InputError("there is no token to go on from; give at least 1 token")
        request = Request(
            unread,
            checked_length(max_new_tokens),
            checked_ends(eos_token_ids),
            ahead=ahead,
            gives_row_back=False,
            on_progress=on_progress,
            top_logprobs=checked_top_logprobs(top_logprobs),
        )
        return self._scheduler.write(opened, request)

    def score(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        chunk: int = 64,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Read tokens, and tell how likely each was given what was held when it came.

        Args:
            tokens: [Q], Q >= 1; they belong to the text then.
            chunk: most tokens per forward, whose logits [chunk, V] are held at once.
            on_progress: called with the number of tokens after each forward.

        Returns:
            Negative log-likelihoods in nats [Q], float32; of an empty text [Q - 1], as nothing
            predicts its first token.

        Raises:
            InputError: no tokens, or none of this model.
            UnsupportedOperationError: a stream has not ended, or its last token is unread or was
                dropped.
        """
        opened = self._opened
        self._scheduler.validate_idle(opened)
        validate_int("chunk", chunk, 1)
        checked = self._checked(tokens)
        if len(checked) == 0:
            raise InputError("0 tokens cannot be scored; give at least 1")
        if opened.last is not None:
            raise UnsupportedOperationError(
                f"the model has not read the newest token {opened.last}; give it first to "
                "write, with max_new_tokens=0"
            )
        if opened.logits is None and self.num_seen:
            raise UnsupportedOperationError(
                "what the model expected next went with the token that drop_last() took out, so "
                "the first of these tokens cannot be scored; give it to write, with "
                "max_new_tokens=0, and score the others"
            )

        def note(piece: Tensor, logits: Tensor) -> None:
            # A copy, since they are part of those of all the piece.
            opened.logits = logits.clone()
            opened.sampler.see(piece)

        return score(
            self._runner,
            opened.index,
            opened.logits,
            checked,
            chunk=chunk,
            on_read=note,
            on_progress=on_progress,
        )

    def drop_last(self) -> None:
        """Take the newest token out of the text, where the model has not read it yet.

        The token that ended a reply is such a one, and a chat template brings its own.

        Raises:
            UnsupportedOperationError: a stream has not ended.
        """
        self._scheduler.validate_idle(self._opened)
        if self._opened.last is not None:
            self._opened.last = None
            self._opened.sampler.unsee_last()

    def fork(self) -> "Session":
        """Another session, in a free row, that goes on from here by itself.

        Its random numbers go on from the same place too: written on alike, both say the same.

        Raises:
            UnsupportedOperationError: all rows are in use, or a stream has not ended.
        """
        opened = self._opened
        self._scheduler.validate_idle(opened)
        copy = self._scheduler.open(opened.sampler.fork())
        self._runner.store.fork(opened.index, copy.index)
        copy.last, copy.logits = opened.last, opened.logits
        return Session(self._scheduler, copy)

    def snapshot(self) -> Snapshot:
        """Where the session stands, apart from it; `Engine.resume` goes on from there.

        It holds what the model keeps of the text, so keep it as private as the text.

        Raises:
            UnsupportedOperationError: a stream has not ended.
        """
        self._scheduler.validate_idle(self._opened)
        return take_snapshot(self._runner, self._opened)

    def save(self, path: str | PathLike[str]) -> None:
        """Write where the session stands to a file, whole or not at all; `Engine.load` goes on.

        Its size does not depend on the length of the text.

        Args:
            path: of the file, in a folder that is there; another file there is replaced.

        Raises:
            InputError: it cannot be written; what was there is unchanged.
            UnsupportedOperationError: a stream has not ended.
        """
        self.snapshot().save(path)

    def close(self) -> None:
        """Give the row back; again and again does no harm."""
        self._scheduler.close(self._opened)

    def _checked(self, tokens: Sequence[int] | Tensor) -> Tensor:
        return checked_tokens(tokens, self._runner.vocab_size)

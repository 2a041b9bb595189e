"""A session: one sequence that keeps its batch slot between calls."""

from collections.abc import Callable, Collection
from collections.abc import Sequence as TokenSequence
from os import PathLike
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lacache.cache.report import CacheReport, make_report
from lacache.common.validation import validate_int
from lacache.engine.generator import TextGenerator
from lacache.engine.scheduler import Scheduler
from lacache.engine.sequence import (
    Sequence,
    validate_count,
    validate_eos_token_ids,
    validate_tokens,
)
from lacache.engine.sequence_stream import SequenceStream
from lacache.engine.snapshot import Snapshot
from lacache.errors import InputError, UnsupportedOperationError
from lacache.policies.kept import kept_after


@final
class Session(TextGenerator):
    """A sequence with a batch slot of its own; `Engine.open` makes one, `close` frees the slot.

    It consists of the tokens that were given to `generate` and of those that its streams yielded.
    A stream with `lookahead` that is closed early leaves the tokens sampled ahead in it, too.
    """

    def __init__(self, scheduler: Scheduler, sequence: Sequence) -> None:
        """Not for users: open one with `Engine.open`."""
        self._scheduler = scheduler
        self._runner = scheduler.runner
        self._sequence = sequence

    @property
    def num_seen(self) -> int:
        """Tokens that the model has processed."""
        return self._scheduler.state(self._sequence).num_seen

    def report(self) -> CacheReport:
        """Return what the cache holds, and how much it has seen."""
        state = self._scheduler.state(self._sequence)
        return make_report(
            self._runner.layout.bound.groups,
            [kept_after(group.schedule, state.num_seen) for group in state.groups],
            compactions=max(group.num_compactions for group in state.groups),
            num_bytes=self.num_bytes(),
            held_bytes=self._runner.held_bytes(state),
        )

    def num_bytes(self) -> int:
        """Return the bytes of keys and values of the session, which never change."""
        return self._runner.layout.bytes_per_sequence

    def generate(
        self,
        tokens: TokenSequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
        top_logprobs: int | None = None,
        lookahead: int = 0,
    ) -> SequenceStream:
        """Append tokens to the session, and generate what follows.

        The model runs while tokens are taken, from this stream or from another.

        Args:
            tokens: new tokens [Q]; may be empty where the session has tokens already.
            max_new_tokens: most tokens to yield; None is without end, 0 only prefills.
            eos_token_ids: tokens that end the stream; the one that did is yielded too.
            on_progress: called after each prefilled chunk with its number of tokens.
            top_logprobs: how many of the likeliest tokens the stream's `logprobs` lists beside the
                token taken last; 0 lists that token alone, None turns log probabilities off.
            lookahead: tokens that may be sampled before they are taken. They stay in the session,
                even if the stream is closed before they are taken.

        Raises:
            InputError: nothing to prefill, or tokens that the model does not have.
            ConfigError: a negative number of tokens.
            UnsupportedOperationError: an earlier stream has not ended.
        """
        validate_int("lookahead", lookahead, 0)
        self._scheduler.validate_idle(self._sequence)
        sequence = Sequence(
            sampler=self._sequence.sampler,
            to_prefill=self._validate_tokens(tokens),
            max_new_tokens=validate_count("max_new_tokens", max_new_tokens),
            eos_token_ids=validate_eos_token_ids(eos_token_ids),
            top_logprobs=validate_count("top_logprobs", top_logprobs),
            lookahead=lookahead,
            keeps_slot=True,
            on_progress=on_progress,
        )
        self._scheduler.replace(self._sequence, sequence)
        self._sequence = sequence
        return SequenceStream(sequence, self._scheduler)

    def score(
        self,
        tokens: TokenSequence[int] | Tensor,
        *,
        chunk_size: int = 64,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Append tokens, and return the negative log-likelihood of each, given the cache then.

        Memory is that of the session, of one chunk's logits and of the result.

        Args:
            tokens: [Q], Q >= 1; they belong to the session afterwards.
            chunk_size: most tokens per forward, whose logits [chunk, V] are held at once.
            on_progress: called after each forward with its number of tokens.

        Returns:
            Negative log-likelihoods in nats [Q], float32 on the CPU; [Q - 1] for an empty session,
            as nothing predicts its first token.

        Raises:
            InputError: no tokens, or tokens that the model does not have.
            UnsupportedOperationError: a stream has not ended, or its last token was not processed
                or was dropped.
        """
        sequence = self._sequence
        self._scheduler.validate_idle(sequence)
        validate_int("chunk_size", chunk_size, 1)
        given = self._validate_tokens(tokens)
        if len(given) == 0:
            raise InputError("0 tokens cannot be scored; give at least 1")
        if sequence.last is not None:
            raise UnsupportedOperationError(
                f"the model has not processed the newest token {sequence.last}; give it first to "
                "generate, with max_new_tokens=0"
            )
        if sequence.logits is None and self.num_seen:
            raise UnsupportedOperationError(
                "drop_last() removed the newest token and the logits after it, so the first of "
                "these tokens cannot be scored; give it to generate, with max_new_tokens=0, and "
                "score the others"
            )
        scores = []
        while len(given):
            assert sequence.batch_slot is not None  # an idle session has one
            most = min(chunk_size, len(given))
            length = self._runner.cache.chunk_length(sequence.batch_slot, most)
            chunk, given = given[:length], given[length:]
            scores.append(self._score_chunk(sequence, chunk))
            if on_progress is not None:
                on_progress(len(chunk))
        return torch.cat(scores)

    def _score_chunk(self, sequence: Sequence, chunk: Tensor) -> Tensor:
        assert sequence.batch_slot is not None  # an idle session has one
        before = sequence.logits
        logits = self._runner.prefill_all_logits(sequence.batch_slot, chunk)
        # At once: whatever ends the scoring below, the model has processed these tokens. A copy,
        # since the logits are part of those of the whole chunk.
        sequence.logits = logits[-1].clone()
        sequence.sampler.see(chunk)
        predicted = logits[:-1] if before is None else torch.cat([before[None], logits[:-1]])
        targets = chunk[len(chunk) - len(predicted) :].to(logits.device)
        return cross_entropy(predicted, targets, reduction="none").cpu()

    def drop_last(self) -> None:
        """Remove the newest token from the session, if the model has not processed it yet.

        The token that ended a reply is such a token, and a chat template adds its own.

        Raises:
            UnsupportedOperationError: a stream has not ended.
        """
        self._scheduler.validate_idle(self._sequence)
        self._sequence.drop_last()

    def fork(self) -> "Session":
        """Return another session, in a free batch slot, that continues from here independently.

        Its random numbers continue from the same state: equal calls generate equal tokens.

        Raises:
            UnsupportedOperationError: all batch slots are in use, or a stream has not ended.
        """
        sequence = self._sequence
        self._scheduler.validate_idle(sequence)
        copy = Sequence(
            sampler=sequence.sampler.fork(),
            last=sequence.last,
            logits=sequence.logits,
            keeps_slot=True,
            finish_reason=sequence.finish_reason,
        )
        self._scheduler.open(copy)
        assert sequence.batch_slot is not None  # idle, and open
        assert copy.batch_slot is not None  # opened
        self._runner.cache.fork(sequence.batch_slot, copy.batch_slot)
        return Session(self._scheduler, copy)

    def snapshot(self) -> Snapshot:
        """Return a copy of the session's state; `Engine.resume` continues from it.

        It holds the keys and values of the tokens, so it is as confidential as they are.

        Raises:
            UnsupportedOperationError: a stream has not ended.
        """
        self._scheduler.validate_idle(self._sequence)
        return self._scheduler.snapshot(self._sequence)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a snapshot to a file, whole or not at all; `Engine.load` continues from it.

        Its size does not depend on the length of the session.

        Args:
            path: of the file, in an existing folder; an existing file is replaced.

        Raises:
            InputError: it cannot be written; an existing file is unchanged.
            UnsupportedOperationError: a stream has not ended.
        """
        self.snapshot().save(path)

    def close(self) -> None:
        """Free the batch slot; idempotent."""
        self._scheduler.release(self._sequence)

    def _validate_tokens(self, tokens: TokenSequence[int] | Tensor) -> Tensor:
        return validate_tokens(tokens, self._runner.vocab_size)

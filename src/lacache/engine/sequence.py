"""A sequence: everything that the engine knows of one running text."""

import reprlib
from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as TokenSequence
from dataclasses import dataclass, field
from operator import index
from typing import final

import torch
from torch import Tensor

from lacache.common.validation import validate_int
from lacache.engine.sampler import Sampler, TokenLogprobs, token_logprobs
from lacache.engine.snapshot import Snapshot
from lacache.errors import InputError


@final
@dataclass(eq=False, kw_only=True)
class Sequence:
    """The tokens, sampler, stop rules, status and batch slot of one prompt and its completion.

    Its keys and values are in the buffers of the runner, in the batch slot. A sequence never holds
    more tokens than its prompt and `lookahead`, however long it gets. A session makes a new one for
    each `generate` call, by `followed_by`.
    """

    sampler: Sampler
    to_prefill: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """Tokens [Q] of the prompt that are not prefilled yet."""
    max_new_tokens: int | None = 0
    """Most tokens to generate; None is without end."""
    eos_token_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    """How many of the likeliest tokens to report with each new one; None reports no logprobs."""
    lookahead: int = 0
    """How many tokens may be sampled before the reader takes them; then the sequence pauses."""
    keeps_slot: bool = False
    """Whether the batch slot outlives the end of the sequence, for a session or a snapshot."""
    on_progress: Callable[[int], None] | None = None
    """Called after each prefilled chunk with its number of tokens."""
    find_snapshot: Callable[[], Snapshot | None] | None = None
    """Called when a batch slot is free; may shorten `to_prefill` to what the snapshot lacks."""
    on_start: Callable[[int], None] | None = None
    """Called once the snapshot is restored, with the number of tokens that it has seen."""

    batch_slot: int | None = None
    """The batch slot; None while it waits for one, and after it was released."""
    last: int | None = None
    """The newest token, if the model has not processed it yet."""
    logits: Tensor | None = None
    """Logits [V] of the next token, if the model has processed the newest one."""
    new: deque[tuple[int, TokenLogprobs | None]] = field(default_factory=deque)
    """New tokens that the reader has not taken yet."""
    num_new: int = 0
    """New tokens so far, taken or not."""
    finish_reason: str | None = None
    """Why it ended: "eos", "length", "closed" or "error"; None while it goes on."""
    error: Exception | None = None
    """Why it could not start, or why the last attempt to sample ahead of the reader failed."""

    def followed_by(self, sequence: "Sequence") -> "Sequence":
        """Let a new sequence continue this one: it takes over batch slot, last token and logits.

        Raises:
            InputError: there is nothing to prefill and nothing to continue from.
        """
        sequence.last, sequence.logits = self.last, self.logits
        sequence.start()
        sequence.batch_slot, self.batch_slot = self.batch_slot, None
        return sequence

    def start(self) -> None:
        """Put the newest token before the prompt, if the model has not processed it.

        Raises:
            InputError: there is nothing to prefill and nothing to continue from.
        """
        if self.last is not None:
            self.to_prefill = torch.cat([torch.tensor([self.last]), self.to_prefill])
        if len(self.to_prefill) == 0:
            if self.logits is None:
                raise InputError("there is no token to go on from; give at least 1 token")
            self._finish_at_length()

    @property
    def is_done(self) -> bool:
        """Whether it has ended and every new token was taken."""
        return self.finish_reason is not None and not self.new

    @property
    def is_prefilling(self) -> bool:
        """Whether a part of the prompt is still to be prefilled."""
        return len(self.to_prefill) > 0 and self.finish_reason is None

    @property
    def is_decoding(self) -> bool:
        """Whether new tokens are wanted, now or later."""
        return len(self.to_prefill) == 0 and self.finish_reason is None

    @property
    def wants_token(self) -> bool:
        """Whether the next token can be sampled before the reader asks for it."""
        return self.is_decoding and self.logits is not None and len(self.new) < self.lookahead

    @property
    def wants_logits(self) -> bool:
        """Whether the model may process the newest token."""
        return self.is_decoding and self.last is not None and len(self.new) <= self.lookahead

    def prefilled(self, chunk: Tensor, logits: Tensor) -> None:
        """Note that the model has processed the next tokens of the prompt."""
        self.to_prefill = self.to_prefill[len(chunk) :]
        self.last, self.logits = None, logits
        self.sampler.see(chunk)
        if len(self.to_prefill) == 0:
            self._finish_at_length()

    def decoded(self, logits: Tensor) -> None:
        """Note that the model has processed the newest token."""
        self.last, self.logits = None, logits

    def sample(self) -> None:
        """Sample the next token from the logits, and apply the stop rules.

        Raises:
            ModelError: the logits are not numbers; they stay, so that the next attempt raises too.
        """
        assert self.logits is not None  # callers check
        token = self.sampler.choose(self.logits[None])
        top = self.top_logprobs
        logprobs = None if top is None else token_logprobs(self.logits, token, top)
        self.last, self.logits = token, None
        self.new.append((token, logprobs))
        self.num_new += 1
        if token in self.eos_token_ids:
            self.finish_reason = "eos"
        else:
            self._finish_at_length()

    def abort(self) -> None:
        """End now, and discard the tokens that the reader has not taken."""
        if not self.is_done:
            self.finish_reason = "closed"
        self.new.clear()

    def drop_last(self) -> None:
        """Remove the newest token, if the model has not processed it."""
        if self.last is not None:
            self.last = None
            self.sampler.unsee_last()

    def _finish_at_length(self) -> None:
        if self.num_new == self.max_new_tokens:
            self.finish_reason = "length"


def validate_tokens(tokens: TokenSequence[int] | Tensor, vocab_size: int) -> Tensor:
    """Return a copy of tokens [Q], int64 on the CPU.

    Raises:
        InputError: they are not in the vocabulary, or not in one dimension.
    """
    rule = "must be a list or a tensor of whole numbers; try tokenizer(text).input_ids"
    try:
        given = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"tokens={reprlib.repr(tokens)} {rule}") from error
    if given.ndim != 1:
        raise InputError(
            f"tokens of shape {tuple(given.shape)} must be of shape [tokens]; give one "
            "sequence at a time, in a flat list or tensor"
        )
    is_whole = not (given.is_floating_point() or given.is_complex())
    if len(given) and (not is_whole or given.dtype == torch.bool):
        raise InputError(f"tokens of type {given.dtype} {rule}")
    valid = given.to("cpu", torch.long, copy=True)
    if len(valid) and not 0 <= int(valid.min()) <= int(valid.max()) < vocab_size:
        raise InputError(
            f"token ids from {int(valid.min())} to {int(valid.max())} must lie in 0 to "
            f"{vocab_size - 1}; use the tokenizer of this model"
        )
    return valid


def validate_eos_token_ids(eos_token_ids: Collection[int]) -> frozenset[int]:
    """Return the tokens that end a sequence, as a set.

    Raises:
        InputError: they are not whole numbers, or not in a collection.
    """
    try:
        return frozenset(index(token) for token in eos_token_ids)
    except TypeError as error:
        raise InputError(
            f"eos_token_ids={eos_token_ids!r} must be token ids in a list or a set; try "
            "[tokenizer.eos_token_id]"
        ) from error


def validate_count(name: str, value: int | None) -> int | None:
    """Return a number of tokens; None, where there is no such number, is allowed.

    Raises:
        ConfigError: it is negative, or no integer.
    """
    if value is not None:
        validate_int(name, value, 0)
    return value

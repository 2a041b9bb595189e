"""Validation of the arguments of requests."""

import reprlib
from collections.abc import Collection, Sequence
from operator import index

import torch
from torch import Tensor

from lacache.common.validation import validate_int
from lacache.errors import InputError


def validate_tokens(tokens: Sequence[int] | Tensor, vocab_size: int) -> Tensor:
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


def validate_top_logprobs(top_logprobs: int | None) -> int | None:
    """Return how many of the likeliest tokens to report with each; None reports none.

    Raises:
        ConfigError: it is negative.
    """
    if top_logprobs is not None:
        validate_int("top_logprobs", top_logprobs, 0)
    return top_logprobs


def validate_max_new_tokens(max_new_tokens: int | None) -> int | None:
    """Return how many tokens to generate at most; None is without end.

    Raises:
        ConfigError: it is negative.
    """
    if max_new_tokens is not None:
        validate_int("max_new_tokens", max_new_tokens, 0)
    return max_new_tokens

"""The gate through which every forward with one of our caches goes (docs/adr/0003).

A cache sees keys and values only. It cannot see padding, and it cannot cut a prompt that is
longer than the free slots. So the decoder gets a pair of ordinary torch forward hooks, which act
on calls that carry one of our caches and on nothing else: they refuse padding, cut long inputs at
the compactions, and bracket each forward so that an interrupted one is noticed.
"""

import inspect
from abc import ABC, abstractmethod
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import Cache

from lacache.core.errors import InputError, UnsupportedOperationError


class GuardedCache(Cache, ABC):
    """A cache whose forwards are bracketed by the gate."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__(layers=layers)
        self.earlier_hidden: list[Tensor] = []
        """Outputs [B, Q, hidden] of the segments before the one that is running."""

    @abstractmethod
    def resolve(self, num_tokens: int) -> None:
        """Learn the length of the first prompt, for a budget that is a share of it."""

    @abstractmethod
    def next_segment(self, num_tokens: int) -> int:
        """How many of `num_tokens` the next forward may bring."""

    @abstractmethod
    def check_decoder(self, decoder: nn.Module) -> None:
        """Raise ModelError unless the cache was made for this decoder."""

    @abstractmethod
    def check_positions(self, first: int, batch_size: int) -> None:
        """Raise InputError if a forward cannot start there, or has other rows."""

    @abstractmethod
    def begin(self, num_new: int, first_position: int) -> None:
        """Open a forward."""

    @abstractmethod
    def commit(self) -> None:
        """Close a forward."""


_guarded: WeakSet[nn.Module] = WeakSet()


def guard(decoder: nn.Module) -> None:
    """Hang the hooks on a decoder, once."""
    if decoder not in _guarded:
        decoder.register_forward_pre_hook(_before, with_kwargs=True, prepend=True)
        decoder.register_forward_hook(_after, with_kwargs=True)
        _guarded.add(decoder)


def _before(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    call = kwargs
    if args:
        call = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    cache = call.get("past_key_values")
    if not isinstance(cache, GuardedCache):
        return None
    cache.check_decoder(decoder)
    cache.earlier_hidden = []
    _refuse_padding(call.get("attention_mask"))
    # All ones say nothing, and spare the model a mask as long as the text.
    call = {**call, "attention_mask": None}
    inputs = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    num_new = inputs.shape[1]
    if num_new == 0:
        raise InputError("0 new tokens were given and at least one is needed; pass a longer input")
    first = _first_position(call.get("position_ids"), cache)
    cache.check_positions(first, inputs.shape[0])
    cache.resolve(num_new)
    earlier = []
    start = 0
    while (length := cache.next_segment(num_new - start)) < num_new - start:
        _refuse_what_cannot_be_cut(call)
        output = decoder(**_cut(call, start, start + length))
        earlier.append(output[0])
        start += length
    cache.begin(num_new - start, first + start)
    cache.earlier_hidden = earlier
    return (), _cut(call, start, num_new) if start else call


def _after(decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, GuardedCache):
        return output
    cache.commit()
    if cache.earlier_hidden:
        hidden = torch.cat([*cache.earlier_hidden, output[0]], dim=1)
        cache.earlier_hidden = []
        if isinstance(output, tuple):
            return hidden, *output[1:]
        output.last_hidden_state = hidden
    return output


def _refuse_padding(mask: Any) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise UnsupportedOperationError(
            "a custom attention mask was given, and a bounded cache cannot follow it; pass no "
            "mask, or a 2D mask of ones"
        )
    zeros = (mask == 0).sum(dim=1).tolist()
    if any(zeros):
        row = next(i for i, count in enumerate(zeros) if count)
        raise InputError(
            f"row {row} of the attention mask has {zeros[row]} padding tokens, which would be "
            "kept as sinks; give the rows equal lengths, or run them one by one"
        )


def _first_position(position_ids: Any, cache: GuardedCache) -> int:
    """Where the input starts. Anything but a run of consecutive positions is refused."""
    if position_ids is None:
        return cache.get_seq_length()
    first = int(position_ids.flatten()[0])
    run = torch.arange(first, first + position_ids.shape[-1], device=position_ids.device)
    if not bool((position_ids == run).all()):
        raise InputError(
            "position_ids must be consecutive and the same in every row, as positions follow from "
            "the number of tokens seen; leave position_ids out"
        )
    return first


_SEQUENCE_INPUTS = ("input_ids", "inputs_embeds", "position_ids")
_NOT_FROM_SEGMENTS = ("output_attentions", "output_hidden_states")


def _refuse_what_cannot_be_cut(call: dict[str, Any]) -> None:
    for name, value in call.items():
        if name in _NOT_FROM_SEGMENTS and value:
            raise UnsupportedOperationError(
                f"{name}=True needs the input in one piece, and it is longer than the free slots; "
                "feed it in smaller pieces"
            )
        if isinstance(value, Tensor) and name not in _SEQUENCE_INPUTS and value.ndim > 1:
            raise UnsupportedOperationError(
                f"the input {name} cannot be cut at compactions; feed the text in pieces of at "
                "most the free slots"
            )


def _cut(call: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    cut = dict(call)
    for name in ("input_ids", "inputs_embeds"):
        if call.get(name) is not None:
            cut[name] = call[name][:, start:stop]
    if call.get("position_ids") is not None:
        cut["position_ids"] = call["position_ids"][..., start:stop]
    return cut

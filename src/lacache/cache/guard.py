"""The gate through which every forward with one of our caches goes (docs/adr/0003).

A cache sees keys and values only. It cannot see padding, and it cannot cut a prompt that is
longer than the free slots. So the decoder gets a pair of ordinary torch forward hooks, which act
on calls that carry one of our caches and on nothing else: they refuse padding, cut long inputs at
the compactions, and bracket each forward so that an interrupted one is noticed.
"""

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lacache.errors import InputError, UnsupportedOperationError
from lacache.models.decoder import given_cache


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
    def next_chunk(self, num_tokens: int) -> int:
        """How many of `num_tokens` the next forward may bring."""

    @abstractmethod
    def validate_decoder(self, decoder: nn.Module) -> None:
        """Raise ModelError unless the cache was made for this decoder."""

    @abstractmethod
    def validate_input(self, first_position: int | None, batch_size: int) -> None:
        """Raise InputError if an input does not go on where the text stands."""

    @abstractmethod
    def next_positions(self, num_new: int) -> Tensor:
        """Positions [Q] for the next forward, where the caller gives none."""

    @abstractmethod
    def begin(self, num_new: int, first_position: int) -> None:
        """Open a forward."""

    @abstractmethod
    def commit(self) -> None:
        """Close a forward."""

    def key_lengths(self, layer_idx: int) -> tuple[int, ...] | None:
        """Keys per KV head (or one number for all) in the open forward.

        None where all layers hold equally many, so that the model's own mask fits.
        """
        return None


def guard(decoder: nn.Module) -> None:
    """Hang the hooks on a decoder, once."""
    if _before not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_before, with_kwargs=True, prepend=True)
        decoder.register_forward_hook(_after, with_kwargs=True)


def _before(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    call = kwargs
    if args:
        call = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    cache = given_cache(call)
    if not isinstance(cache, GuardedCache):
        return None
    cache.earlier_hidden = []
    cache.validate_decoder(decoder)
    _refuse_padding(call.get("attention_mask"))
    # All ones say nothing, and spare the model a mask as long as the text.
    call = {**call, "attention_mask": None}
    batch_size, num_new, device = _shape(call)
    given = call.get("position_ids")
    cache.validate_input(_first_position(given, num_new), batch_size)
    cache.resolve(num_new)
    earlier = []
    start = 0
    while (length := cache.next_chunk(num_new - start)) < num_new - start:
        _refuse_what_cannot_be_cut(decoder, call)
        output = decoder(**_cut(call, start, start + length))
        earlier.append(output[0])
        start += length
    call = _cut(call, start, num_new)
    if given is None:
        # Always spoken out: some decoders count from 0 in every call.
        call["position_ids"] = cache.next_positions(num_new - start).to(device)[None]
    cache.begin(num_new - start, int(call["position_ids"].flatten()[0]))
    cache.earlier_hidden = earlier
    return (), call


def _after(decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    cache = given_cache(kwargs)
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


def _shape(call: dict[str, Any]) -> tuple[int, int, torch.device]:
    """Rows, new tokens and device of the input."""
    inputs = call["input_ids"] if call.get("input_ids") is not None else call.get("inputs_embeds")
    if inputs is None:
        raise InputError("neither input_ids nor inputs_embeds was given; pass one of them")
    if inputs.shape[1] == 0:
        raise InputError(
            "0 new tokens were given and at least one is needed; generate() needs the whole text "
            "so far and a new token, and cache.reset() starts over"
        )
    return inputs.shape[0], inputs.shape[1], inputs.device


def _first_position(position_ids: Any, num_new: int) -> int | None:
    """Where the input starts. Anything but a run of consecutive positions is refused."""
    if position_ids is None:
        return None
    first = int(position_ids.flatten()[0])
    run = torch.arange(first, first + num_new, device=position_ids.device)
    if position_ids.shape[-1] != num_new or not bool((position_ids == run).all()):
        raise InputError(
            f"position_ids must be {num_new} consecutive numbers, the same in every row, as "
            "positions follow from the number of tokens seen; leave position_ids out"
        )
    return first


_SEQUENCE_INPUTS = ("input_ids", "inputs_embeds", "position_ids")
_NOT_FROM_SEGMENTS = ("output_attentions", "output_hidden_states", "output_router_logits")


def _refuse_what_cannot_be_cut(decoder: nn.Module, call: dict[str, Any]) -> None:
    for name in _NOT_FROM_SEGMENTS:
        wanted = call.get(name)
        if getattr(decoder.config, name, False) if wanted is None else wanted:
            raise UnsupportedOperationError(
                f"{name}=True needs the input in one piece, and it is longer than the free slots; "
                "feed it in smaller pieces"
            )
    for name, value in call.items():
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

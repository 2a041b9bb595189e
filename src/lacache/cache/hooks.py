"""Forward hooks on an unpatched model (docs/adr/0003, docs/adr/0006).

A transformers cache receives keys and values only. It cannot see padding, and cannot cut a prompt
that is longer than the free slots. So the decoder gets two torch forward hooks, which act only on
calls with a `HookedCache`: they refuse padding, cut long inputs at the compactions, set the
position ids (docs/adr/0022), and bracket each forward so that an interrupted one is noticed.

transformers makes one mask for all full-attention layers, with the size of the first. Where layers
or KV heads hold different numbers of tokens, a pre-hook gives each attention module its own mask.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lacache.cache.hooked_cache import HookedCache
from lacache.errors import InputError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.decoder import given_cache


def install_hooks(decoder: nn.Module) -> None:
    """Register the forward hooks on a decoder. Idempotent."""
    if _before_forward not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_before_forward, with_kwargs=True, prepend=True)
        decoder.register_forward_hook(_after_forward, with_kwargs=True)


def _before_forward(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    call = kwargs
    if args:
        call = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    cache = given_cache(call)
    if not isinstance(cache, HookedCache):
        return None
    cache.earlier_hidden = []
    cache.validate_decoder(decoder)
    _refuse_padding(call.get("attention_mask"))
    # It is all ones, and the model would need one as long as the sequence.
    call = {**call, "attention_mask": None}
    batch_size, num_new, device = _shape(call)
    given = call.get("position_ids")
    cache.validate_input(_first_position(given, num_new), batch_size)
    cache.expect_prompt(num_new)
    earlier = []
    start = 0
    while (length := cache.next_chunk(num_new - start)) < num_new - start:
        _refuse_uncuttable(decoder, call)
        output = decoder(**_cut(call, start, start + length))
        earlier.append(output[0])
        start += length
    call = _cut(call, start, num_new)
    positions = cache.next_positions(num_new - start).to(device)
    if given is None:
        # Without position ids, some decoders count from 0 in every call.
        call["position_ids"] = positions[None]
    else:
        # One text has one result, whether positions are given or not.
        call["position_ids"] = positions.expand_as(call["position_ids"])
    cache.begin(num_new - start)
    cache.earlier_hidden = earlier
    return (), call


def _after_forward(decoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    cache = given_cache(kwargs)
    if not isinstance(cache, HookedCache):
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
        padded = next(i for i, count in enumerate(zeros) if count)
        raise InputError(
            f"sequence {padded} of the attention mask has {zeros[padded]} padding tokens, which "
            "would be kept as sinks; give sequences of equal lengths, or run them one by one"
        )


def _shape(call: dict[str, Any]) -> tuple[int, int, torch.device]:
    """Return B, Q and the device of the input."""
    inputs = call["input_ids"] if call.get("input_ids") is not None else call.get("inputs_embeds")
    if inputs is None:
        raise InputError("neither input_ids nor inputs_embeds was given; pass one of them")
    if inputs.shape[1] == 0:
        raise InputError(
            "0 new tokens were given and at least one is needed; generate() needs the whole "
            "sequence so far and a new token, and cache.reset() starts over"
        )
    return inputs.shape[0], inputs.shape[1], inputs.device


def _first_position(position_ids: Any, num_new: int) -> int | None:
    """Return the first position id, and refuse ids that are not consecutive."""
    if position_ids is None:
        return None
    first = int(position_ids.flatten()[0])
    run = torch.arange(first, first + num_new, device=position_ids.device)
    if position_ids.shape[-1] != num_new or not bool((position_ids == run).all()):
        raise InputError(
            f"position_ids must be {num_new} consecutive numbers, the same in every sequence, as "
            "positions follow from the number of tokens seen; leave position_ids out"
        )
    return first


_SEQUENCE_INPUTS = ("input_ids", "inputs_embeds", "position_ids")
_NOT_FROM_CHUNKS = ("output_attentions", "output_hidden_states", "output_router_logits")


def _refuse_uncuttable(decoder: nn.Module, call: dict[str, Any]) -> None:
    for name in _NOT_FROM_CHUNKS:
        wanted = call.get(name)
        if getattr(decoder.config, name, False) if wanted is None else wanted:
            raise UnsupportedOperationError(
                f"{name}=True needs the input in one chunk, and it is longer than the free slots; "
                "give it in smaller chunks"
            )
    for name, value in call.items():
        if isinstance(value, Tensor) and name not in _SEQUENCE_INPUTS and value.ndim > 1:
            raise UnsupportedOperationError(
                f"the input {name} cannot be cut at compactions; give the prompt in chunks of "
                "at most the free slots"
            )


def _cut(call: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    cut = dict(call)
    for name in ("input_ids", "inputs_embeds"):
        if call.get(name) is not None:
            cut[name] = call[name][:, start:stop]
    if call.get("position_ids") is not None:
        cut["position_ids"] = call["position_ids"][..., start:stop]
    return cut


def install_mask_hooks(decoder: nn.Module, layers: Iterable[int]) -> None:
    """Register the mask hook on the attention modules of these layers. Idempotent.

    Raises:
        UnsupportedModelError: a layer has no module that takes an attention mask.
    """
    modules = [m for m in decoder.modules() if "layer_idx" in vars(m) and _takes_mask(m)]
    # Where whole layers have a layer_idx too, the mask goes through them to their attention.
    inner = [m for m in modules if not any(part in modules for part in list(m.modules())[1:])]
    for layer in layers:
        found = [module for module in inner if vars(module)["layer_idx"] == layer]
        if not found:
            raise UnsupportedModelError(
                f"layer {layer} of {type(decoder).__name__} has no module with a layer_idx that "
                "takes an attention_mask, so groups of different capacities cannot be masked; use "
                "one policy for all layers"
            )
        for module in found:
            if _set_mask not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_set_mask, with_kwargs=True)


def visible_keys(lengths: Sequence[int], num_new: int) -> Tensor | None:
    """Return which keys each new token attends to: bool [1, H, Q, K], or None for all.

    Head h holds `lengths[h]` keys at the right end, the new tokens last; the rest is padding. H is
    1 where all heads hold equally many.
    """
    longest = max(lengths)
    if min(lengths) == longest:
        if num_new == 1:
            return None
        lengths = (longest,)
    causal = torch.ones(num_new, longest, dtype=torch.bool).tril(longest - num_new)
    filled = torch.arange(longest) < longest - torch.tensor(lengths)[:, None]
    return (causal & ~filled[:, None])[None]


def _takes_mask(module: nn.Module) -> bool:
    return "attention_mask" in inspect.signature(module.forward).parameters


def _set_mask(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, HookedCache)), None)
    if cache is None:
        return None
    lengths = cache.key_lengths(int(vars(module)["layer_idx"]))
    if lengths is None:
        return None
    hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    visible = visible_keys(lengths, hidden.shape[1])
    config: Any = module.config
    implementation: str = config._attn_implementation
    mask: Tensor | None
    if implementation.startswith("flash_attention") and len(lengths) == 1:
        # Flash attention aligns queries and keys at the right by itself.
        mask = None
    elif implementation in ("sdpa", "eager"):
        mask = _in_form(visible, implementation, config.num_attention_heads, hidden)
    else:
        raise UnsupportedOperationError(
            f"groups of different capacities cannot be masked with attention {implementation!r}; "
            "try model.set_attn_implementation('sdpa')"
        )
    return args, {**kwargs, "attention_mask": mask}


def _in_form(
    visible: Tensor | None, implementation: str, num_heads: int, hidden: Tensor
) -> Tensor | None:
    """Return the mask in an implementation's own form (transformers' `masking_utils`)."""
    if visible is None:
        return None
    if visible.shape[1] > 1:
        visible = visible.repeat_interleave(num_heads // visible.shape[1], dim=1)
    visible = visible.to(hidden.device)
    if implementation == "sdpa":
        return visible
    hide = torch.finfo(hidden.dtype).min
    return torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(
        ~visible, hide
    )


HOOKS = frozenset((_before_forward, _after_forward, _set_mask))
"""All of these hooks, which do nothing in a forward without a `HookedCache`."""

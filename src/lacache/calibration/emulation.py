"""Emulate windows by masks: some KV heads see only sinks and a window, without a cache.

Tokens keep their original positions, the sinks too, which a cache moves. Else the mask hides from a
head what a cache would have evicted, at the price of a plain forward.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.common.validation import validate_int
from lacache.errors import ModelError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.decoder import find_decoder
from lacache.models.model_info import model_info


@final
class Emulation:
    """A model in which chosen KV heads see only sinks and a window.

    Args:
        model: a causal language model of transformers whose attention is eager or sdpa.
        window: recent tokens that a streaming head sees, the current one included.
        sinks: attention sinks that it sees besides.

    Raises:
        ConfigError: `window` is below 1 or `sinks` below 0.
        ModelError: the model has no language-model head.
        UnsupportedModelError: layers or attention that take no mask.
        UnsupportedOperationError: the attention implementation is another one.
    """

    def __init__(self, model: Any, *, window: int, sinks: int) -> None:
        validate_int("window", window, 1)
        validate_int("sinks", sinks, 0)
        info = model_info(model)
        if model.get_output_embeddings() is None:
            raise ModelError(
                f"{type(model).__name__} has no language-model head; load it with "
                "AutoModelForCausalLM.from_pretrained"
            )
        implementation = info.text_config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            raise UnsupportedOperationError(
                f"attention {implementation!r} takes no mask by head; try "
                "model.set_attn_implementation('sdpa')"
            )
        self.num_heads = info.num_heads
        """KV heads of each layer with a growing cache."""
        self._model = model
        self._window, self._sinks = window, sinks
        decoder = find_decoder(model)
        self._layers = _find_layers(decoder, info.text_config.num_hidden_layers)
        self._growing = [layer.index for layer in info.growing]
        self._attentions = [_find_attention(self._layers[i], i) for i in self._growing]
        self._takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters

    def logits(self, token_ids: Sequence[int], positions: Tensor, keep: Tensor) -> Tensor:
        """Return the model's logits after some of the tokens.

        Args:
            token_ids: the sequence.
            positions: int [R], the tokens whose logits are returned.
            keep: bool [L, H]; True for KV heads that see all tokens. H is the most heads of any
                layer; surplus entries of a layer are ignored.

        Returns:
            Logits [R, V] in float32.
        """
        with self._masked(len(token_ids), keep):
            return self._forward(token_ids, positions)

    def variants(
        self, token_ids: Sequence[int], positions: Tensor, keep: Tensor, changes: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Yield the `logits` with `keep`, then with each of `changes`.

        Layers below the first one that a change affects are computed once and replayed.
        """
        outputs: list[Any] = []
        with self._masked(len(token_ids), keep), _recorded(self._layers, outputs):
            logits = self._forward(token_ids, positions)
        yield logits
        for change in changes:
            touched = (change != keep).any(dim=1).nonzero()
            same = self._growing[int(touched[0])] if len(touched) else len(self._layers)
            with self._masked(len(token_ids), change), _replayed(self._layers, outputs[:same]):
                logits = self._forward(token_ids, positions)
            yield logits

    @torch.no_grad()
    def _forward(self, token_ids: Sequence[int], positions: Tensor) -> Tensor:
        device = self._model.get_input_embeddings().weight.device
        ids = torch.tensor([list(token_ids)], device=device)
        positions = positions.to(device)
        wanted = {"logits_to_keep": positions} if self._takes_positions else {}
        logits: Tensor = self._model(input_ids=ids, use_cache=False, **wanted).logits[0]
        return (logits if self._takes_positions else logits[positions]).float()

    @contextmanager
    def _masked(self, num_tokens: int, keep: Tensor) -> Iterator[None]:
        visible = visible_tokens(num_tokens, self._window, self._sinks)
        with ExitStack() as stack:
            for layer, attention in enumerate(self._attentions):
                heads = keep[layer, : self.num_heads[layer]]
                if not heads.all():
                    hook = _mask_hook(visible[heads.long()])
                    handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            yield


def visible_tokens(num_tokens: int, window: int, sinks: int) -> Tensor:
    """Return the tokens (last axis) that each token sees: bool [2, N, N], windowed, then all."""
    token = torch.arange(num_tokens)
    causal = token <= token[:, None]
    recent = token > token[:, None] - window
    return torch.stack([causal & (recent | (token < sinks)), causal])


def _mask_hook(visible: Tensor) -> Any:
    """Return a forward pre-hook that passes this mask, bool [Hkv, N, N], to an attention module."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        config = module.config
        mask = visible.repeat_interleave(config.num_attention_heads // len(visible), dim=0)[None]
        mask = mask.to(hidden.device)
        if config._attn_implementation == "eager":
            hide = torch.finfo(hidden.dtype).min
            mask = torch.zeros(mask.shape, dtype=hidden.dtype, device=mask.device).masked_fill(
                ~mask, hide
            )
        return args, {**kwargs, "attention_mask": mask}

    return hook


def _find_layers(decoder: nn.Module, num_layers: int) -> list[nn.Module]:
    for child in decoder.children():
        if isinstance(child, nn.ModuleList) and len(child) == num_layers:
            return list(child)
    raise UnsupportedModelError(
        f"{type(decoder).__name__} has no list of {num_layers} layers, so no layer can be given a "
        "window; use a model with plain decoder layers"
    )


def _find_attention(layer: nn.Module, index: int) -> nn.Module:
    for module in layer.modules():
        takes_mask = "attention_mask" in inspect.signature(module.forward).parameters
        if takes_mask and vars(module).get("layer_idx") == index and module is not layer:
            return module
    raise UnsupportedModelError(
        f"layer {index} ({type(layer).__name__}) has no attention module that takes a mask; use a "
        "model with plain attention layers"
    )


@contextmanager
def _recorded(layers: Sequence[nn.Module], outputs: list[Any]) -> Iterator[None]:
    """Append the output of each layer to `outputs`."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(hook).remove)
        yield


@contextmanager
def _replayed(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Make the first layers return `outputs` without computing."""
    with ExitStack() as stack:
        for layer, output in zip(layers, outputs, strict=False):
            # Set on this one module, and only while the block lasts.
            before = vars(layer).get("forward")
            layer.forward = lambda *_args, _output=output, **_kwargs: _output
            stack.callback(_restore, layer, before)
        yield


def _restore(layer: nn.Module, forward: Any) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward

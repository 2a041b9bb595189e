"""Emulate windows: each KV head mixes full attention with attention to sinks and a window.

Tokens keep their original positions, the sinks too, which a cache moves. Else a window hides from a
head what a cache would have evicted, at the price of a plain forward.

The model attends through a function that is registered with transformers. It calls the model's own
attention function twice, with the model's mask and with a narrower one, so scaling, capped scores
and learned sinks are the model's.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lacache.calibration.packed import differentiable, restore_forward
from lacache.common.packages import quiet_imports
from lacache.common.validation import validate_int
from lacache.errors import ModelError, UnsupportedModelError, UnsupportedOperationError
from lacache.models.decoder import find_decoder, input_device
from lacache.models.model_info import model_info

with quiet_imports():
    from transformers import AttentionInterface, AttentionMaskInterface

_NAMES = {"eager": "lacache_mixed_eager", "sdpa": "lacache_mixed_sdpa"}
"""Attention implementations that take a mask, and what each is called when it is mixed."""


@final
class Emulation:
    """A model in which each KV head has a mixing coefficient between full and window attention.

    A coefficient of 1 is attention to all tokens, 0 to sinks and a window only. Query heads that
    share a KV head share its coefficient. Coefficients are [L, H]: L layers with a growing cache,
    H the most KV heads of any of them; surplus entries of a layer are ignored.

    Layers with a longer sliding window of their own always get the window, since they see as little
    of what is far back in a long text as that shows them of a short one.

    Args:
        model: a causal language model of transformers whose attention is eager or sdpa.
        window: recent tokens that a streaming head sees, the current one included.
        sinks: attention sinks that it sees besides.

    Raises:
        ConfigError: `window` is below 1 or `sinks` below 0.
        ModelError: the model has no language-model head.
        UnsupportedModelError: layers without an attention module that can be given a window.
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
        self._config = info.text_config
        _validate_implementation(self._config._attn_implementation)
        self.num_heads = info.num_heads
        """KV heads of each layer with a growing cache."""
        self._model = model
        self._window, self._sinks = window, sinks
        decoder = find_decoder(model)
        self._layers = _find_layers(decoder, self._config.num_hidden_layers)
        self._attentions = [_find_attention(self._layers[i.index], i.index) for i in info.growing]
        self._sliding = [
            (_find_attention(self._layers[i.index], i.index), torch.zeros(i.num_heads))
            for i in info.sliding
            if i.window > window
        ]
        self._takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters

    def coefficients(self, value: float = 0.0) -> Tensor:
        """Return coefficients [L, H] that are all `value`."""
        return torch.full((len(self.num_heads), max(self.num_heads)), float(value))

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int], positions: Tensor, mixing: Tensor) -> Tensor:
        """Return the model's logits after some of the tokens.

        Args:
            token_ids: the sequence.
            positions: int [R], the tokens whose logits are returned.
            mixing: coefficients [L, H].

        Returns:
            Logits [R, V] in float32.

        Raises:
            UnsupportedModelError: attention that does not go through transformers' interface.
            UnsupportedOperationError: sdpa for attention that only eager can compute.
        """
        with self._mixed(len(token_ids), mixing):
            return self._forward(token_ids, positions)

    def gradient(
        self, token_ids: Sequence[int], positions: Tensor, targets: Tensor, mixing: Tensor
    ) -> tuple[float, Tensor]:
        """Return the loss of some tokens, and its derivative by each coefficient.

        Weights are frozen. The activations of one layer at a time are kept for the derivative,
        besides the inputs of all layers.

        Args:
            token_ids: the sequence.
            positions: int [R], the tokens before the ones to predict.
            targets: int [R], the tokens to predict.
            mixing: coefficients [L, H].

        Returns:
            The mean loss in nats, and its derivative [L, H].

        Raises:
            UnsupportedModelError: attention that does not go through transformers' interface.
            UnsupportedOperationError: sdpa for attention that only eager can compute.
        """
        mixing = mixing.detach().clone().requires_grad_()
        with (
            torch.enable_grad(),
            _frozen(self._model),
            differentiable(self._model),
            # Attention is computed once more in the backward, so it stays mixed until then.
            self._mixed(len(token_ids), mixing),
            _checkpointed(self._layers),
        ):
            logits = self._forward(token_ids, positions)
            loss = cross_entropy(logits, targets.to(logits.device))
            (gradient,) = torch.autograd.grad(loss, mixing)
        return float(loss.detach()), gradient

    def _forward(self, token_ids: Sequence[int], positions: Tensor) -> Tensor:
        device = input_device(self._model)
        ids = torch.tensor([list(token_ids)], device=device)
        positions = positions.to(device)
        wanted = {"logits_to_keep": positions} if self._takes_positions else {}
        logits: Tensor = self._model(input_ids=ids, use_cache=False, **wanted).logits[0]
        return (logits if self._takes_positions else logits[positions]).float()

    @contextmanager
    def _mixed(self, num_tokens: int, mixing: Tensor) -> Iterator[None]:
        """Mix attention while the block lasts; refuse a model that attends in another way."""
        visible = visible_tokens(num_tokens, self._window, self._sinks)[0]
        implementation = self._config._attn_implementation
        _validate_implementation(implementation)
        growing = [(a, mixing[i, : self.num_heads[i]]) for i, a in enumerate(self._attentions)]
        mixes = [(attention, _Mix(c, visible)) for attention, c in (*growing, *self._sliding)]
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.callback(setattr, self._config, "_attn_implementation", implementation)
            self._config._attn_implementation = _NAMES[implementation]
            for attention, mix in mixes:
                stack.callback(_mixes.pop, attention, None)
                _mixes[attention] = mix
            yield
        for attention, mix in mixes:
            if not mix.was_used:
                raise UnsupportedModelError(
                    f"{type(attention).__name__} of {type(self._model).__name__} does not call its "
                    "attention through transformers' AttentionInterface, so its heads cannot be "
                    "given windows; use policy='ladder', which needs no head profile"
                )


@final
@dataclass
class _Mix:
    """The coefficients [H] of one layer, and what a window shows, bool [N, N]."""

    coefficients: Tensor
    visible: Tensor
    was_used: bool = False


_mixes: WeakKeyDictionary[nn.Module, _Mix] = WeakKeyDictionary()
"""By attention module, while it is mixed. The backward may run in another thread."""


def _mixed_attention(
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as the model does, with a window besides where the module has coefficients."""
    attend = partial(_attention(module, implementation, options), module, query, key, value)
    mix = _mixes.get(module)
    if mix is None:
        return attend(attention_mask, **options)[0], None
    mix.was_used = True
    coefficients = mix.coefficients.to(query.device)
    needs_both = coefficients.requires_grad
    outputs = []
    if needs_both or coefficients.any():
        outputs.append((coefficients, attend(attention_mask, **options)[0]))
    if needs_both or (coefficients != 1).any():
        mask = _narrowed(attention_mask, mix.visible, query)
        outputs.append((1 - coefficients, attend(mask, **options)[0]))
    # Outputs are [B, N, Hq, D]. Both products are exact where a coefficient is 0 or 1.
    shared = query.shape[1] // len(coefficients)
    parts = [c.repeat_interleave(shared)[:, None].to(out.dtype) * out for c, out in outputs]
    return sum(parts[1:], parts[0]), None


def _attention(
    module: nn.Module, implementation: str, options: dict[str, Any]
) -> Callable[..., tuple[Tensor, Any]]:
    """Return the attention function that the model uses without us."""
    if implementation == "eager":
        eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
        if eager is None:
            raise UnsupportedModelError(
                f"{type(module).__module__} has no eager_attention_forward, so how it attends is "
                "unknown; try model.set_attn_implementation('sdpa')"
            )
        return eager  # type: ignore[no-any-return]
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise UnsupportedOperationError(
            "the model's attention caps its scores or has learned sinks, which sdpa cannot; call "
            "model.set_attn_implementation('eager')"
        )
    return AttentionInterface()[implementation]  # type: ignore[no-any-return]


def _narrowed(mask: Tensor | None, visible: Tensor, query: Tensor) -> Tensor:
    """Hide from a mask, bool or added to the scores, what is outside of the window."""
    visible = visible.to(query.device)
    if mask is None:
        return visible[None, None]
    if mask.dtype == torch.bool:
        return mask & visible
    return mask.masked_fill(~visible, torch.finfo(mask.dtype).min)


for _implementation, _name in _NAMES.items():
    AttentionInterface.register(_name, partial(_mixed_attention, _implementation))
    # Under an unknown name transformers makes no masks.
    AttentionMaskInterface.register(_name, AttentionMaskInterface()[_implementation])


def visible_tokens(num_tokens: int, window: int, sinks: int) -> Tensor:
    """Return the tokens (last axis) that each token sees: bool [2, N, N], windowed, then all."""
    token = torch.arange(num_tokens)
    causal = token <= token[:, None]
    recent = token > token[:, None] - window
    return torch.stack([causal & (recent | (token < sinks)), causal])


def _validate_implementation(implementation: Any) -> None:
    if implementation not in _NAMES:
        raise UnsupportedOperationError(
            f"attention {implementation!r} takes no mask by head; try "
            "model.set_attn_implementation('sdpa')"
        )


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
def _frozen(model: nn.Module) -> Iterator[None]:
    """Compute no derivatives by weights while the block lasts."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Keep only the layers' inputs for the backward, and compute the rest once more there."""
    with ExitStack() as stack:
        for layer in layers:
            # Set on this one module, and only while the block lasts.
            before = vars(layer).get("forward")
            stack.callback(restore_forward, layer, before)
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off while the block lasts."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training

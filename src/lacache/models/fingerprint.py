"""Identify a model's weights, and find the head profile that was measured for them."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lacache.common.files import profiles_folder
from lacache.errors import HeadProfileWarning
from lacache.models.decoder import find_decoder
from lacache.models.model_info import model_info
from lacache.models.packed.layers import PackedModule
from lacache.policies import ModelShape, Policy
from lacache.policies.head_profile import HeadProfile, find_profile

_PER_TENSOR = 32
_SHAPE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def fingerprint(model: Any) -> str:
    """Return two short hashes joined by "-": of the configuration's shape, and of sampled weights.

    About 32 elements of every weight matrix are hashed, as bfloat16. So a checkpoint has the same
    fingerprint whether it is loaded in bfloat16 or float32, and in float16 unless a sampled
    element underflows or was rounded twice, or with the weights of a GGUF file packed. Weights
    outside memory (offloaded, on the meta device) are left out, which changes the second hash.
    Packing by torchao changes it too. The fingerprint tells checkpoints apart; it does not protect
    against deliberate collisions.

    Raises:
        UnsupportedModelError: `model` is not a decoder-only model of transformers.
    """
    decoder = find_decoder(model)
    config = model.config.get_text_config(decoder=True).to_dict()
    weights = hashlib.sha256()
    for name, module in decoder.named_modules():
        for key, sample in _samples(module):
            weights.update(f"{name}.{key}".removeprefix(".").encode())
            weights.update(sample.cpu().view(torch.int16).numpy().tobytes())
    return f"{shape_hash(config)}-{weights.hexdigest()[:12]}"


def shape_hash(config: Mapping[str, Any]) -> str:
    """Return the first hash of a fingerprint.

    Args:
        config: of a decoder, by name.
    """
    shape = json.dumps([config.get(name) for name in _SHAPE_FIELDS])
    return hashlib.sha256(shape.encode()).hexdigest()[:8]


def model_profile(model: Any, model_fingerprint: str | None = None) -> HeadProfile | None:
    """Return the head profile of a loaded model, or None if none was measured.

    A user's own profile comes before a shipped one, and one for these weights before one for
    other weights of the same shape.

    Args:
        model: a causal language model of transformers.
        model_fingerprint: its fingerprint, where the caller has it.

    Raises:
        InputError: a profile file cannot be read.
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    profile = find_profile(model_fingerprint or fingerprint(model), (profiles_folder(),))
    if profile is not None and profile.num_heads != model_info(model).num_heads:
        # The same shape otherwise, but other layers are sliding.
        return None
    return profile


@torch.no_grad()
def _samples(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and evenly spaced elements, in bfloat16, of a module's own weight matrices."""
    if isinstance(module, PackedModule):
        weight = module.packed
        places = _places(weight.out_features * weight.in_features)
        numbers = weight.unpack_at(places // weight.in_features)
        yield "weight", _rounded(numbers[torch.arange(_PER_TENSOR), places % weight.in_features])
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim >= 2 and not parameter.is_meta:
            parts = [part.flatten() for part in _plain_tensors(parameter.detach())]
            samples = [_rounded(part[_places(part.numel()).to(part.device)]) for part in parts]
            yield name, torch.cat([sample.cpu() for sample in samples])


def _plain_tensors(weight: Any) -> Iterator[Tensor]:
    """Yield a weight, or the tensors that it packs: torchao's weights have no elements."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(weight, name))


def _places(number: int) -> Tensor:
    return torch.arange(_PER_TENSOR) * (number - 1) // (_PER_TENSOR - 1)


def _rounded(numbers: Tensor) -> Tensor:
    # Adding 0.0 makes negative zeros positive.
    return numbers.to(torch.bfloat16) + 0.0


_warned: WeakSet[nn.Module] = WeakSet()


def model_shape(model: Any, policy: Policy, model_fingerprint: str | None = None) -> ModelShape:
    """Return what a policy must know of a model, its head profile where the policy needs one.

    Issues a HeadProfileWarning, once for a model, if the policy needs a profile and none was
    measured for these weights.

    Args:
        model: a causal language model of transformers.
        policy: the policy.
        model_fingerprint: the model's fingerprint, where the caller has it.

    Raises:
        InputError: a profile cannot be read.
        UnsupportedModelError: the model's caches or positions are not understood.
    """
    num_heads = model_info(model).num_heads
    if not policy.needs_profile:
        return ModelShape(num_heads)
    decoder, model_fingerprint = find_decoder(model), model_fingerprint or fingerprint(model)
    profile = model_profile(model, model_fingerprint)
    if decoder not in _warned:
        _warned.add(decoder)
        if profile is None or not profile.matches(model_fingerprint):
            # The caller of the cache or engine that asks for the shape.
            warnings.warn(_warning(model, policy, profile), HeadProfileWarning, stacklevel=3)
    return ModelShape(num_heads, profile)


def _warning(model: Any, policy: Policy, profile: HeadProfile | None) -> str:
    name = str(model.config.name_or_path)
    command = f" or: lacache calibrate --model {name}" if name else ""
    found = (
        f"so policy '{policy}' works without knowing its retrieval heads"
        if profile is None
        else f"so policy '{policy}' uses that of {profile.model}, of equal shape"
    )
    return (
        f"the weights of {name or type(model).__name__} have no head profile, {found}; measure it "
        f"once with lacache.calibrate(model, tokenizer){command}"
    )

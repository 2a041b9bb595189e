"""Linear layers and embeddings over packed weights."""

from abc import ABC
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.kernels.build import kernels_loaded
from lacache.models.arithmetic import has_arithmetic
from lacache.models.packed.weight import ROWS, TENSORS, PackedWeight

_BLOCK = 2**20
"""Numbers that are unpacked at once: as many as a processor's own caches hold."""
_FEW = 16
"""With more vectors, unpacking costs little beside the products."""
_DTYPES = (torch.float32, torch.bfloat16)
"""Types that the kernel unpacks to."""


class PackedModule(nn.Module, ABC):
    """A module with a packed weight, whose tensors are its buffers.

    Args:
        weight: the weight.
        dtype: type of the results, and of the bias.
    """

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        tensors = weight.tensors()
        for name in TENSORS:
            self.register_buffer(name, tensors.get(name))
        self._metadata = weight.metadata()
        # Casts of the model reach it.
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def packed(self) -> PackedWeight:
        """The weight, over the module's own tensors."""
        tensors = {name: self._buffers[name] for name in TENSORS}
        there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        return PackedWeight.from_tensors(there, self._metadata)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the results."""
        return self.get_buffer("_like").dtype


@final
class PackedLinear(PackedModule):
    """A linear layer with a packed weight [O, I].

    On CPU with the kernels loaded, activations are rounded to 8 bits in groups of 16 where there
    are few. With many, where 16-bit products are slow, the kernel multiplies in float32. Else, and
    where a derivative is needed, the weight is unpacked part by part, and torch multiplies.

    Args:
        weight: the weight.
        bias: [O], or None.
        dtype: type of the results.
    """

    def __init__(self, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map hidden states [..., I] to [..., O]."""
        vectors = states.reshape(-1, states.shape[-1])
        needs_derivative = torch.is_grad_enabled() and states.requires_grad
        in_kernel = kernels_loaded() and states.device.type == "cpu" and not needs_derivative
        if in_kernel and len(vectors) <= _FEW:
            product = rounded_linear(vectors, self.packed)
        elif in_kernel and not has_arithmetic(torch.bfloat16):
            product = exact_linear(vectors, self.packed)
        else:
            product = unpacked_linear(vectors, self.packed)
        product = product.view(*states.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


@final
class PackedEmbedding(PackedModule):
    """An embedding with a packed weight [V, D]."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.num_embeddings, self.embedding_dim = weight.out_features, weight.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """Map tokens [...] to embeddings [..., D]."""
        numbers = self.packed.unpack_at(ids.flatten())
        return numbers.to(self.dtype).view(*ids.shape, -1)


def is_packed(model: nn.Module) -> bool:
    """Return whether a model has packed weights."""
    return any(isinstance(module, PackedModule) for module in model.modules())


def rounded_linear(vectors: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply vectors [T, I], rounded to 8 bits in groups of 16, with a weight: [T, O]."""
    return _kernel_linear(vectors, weight, exact=False)


def exact_linear(vectors: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply vectors [T, I] with a weight in float32, T at least 12: [T, O].

    The weight is unpacked to where a core multiplies it at once: 1.5 times as fast as torch's
    products in float32 with AVX2.
    """
    return _kernel_linear(vectors, weight, exact=True)


def unpacked_linear(vectors: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply vectors [T, I] with a weight that is unpacked part by part: [T, O]."""
    on_cpu = vectors.device.type == "cpu"
    dtype = vectors.dtype if not on_cpu or has_arithmetic(vectors.dtype) else torch.float32
    step = ROWS * max(1, _BLOCK // (ROWS * weight.in_features))
    parts = [
        nn.functional.linear(vectors.to(dtype), _numbers(weight, n, n + step, dtype))
        for n in range(0, weight.out_features, step)
    ]
    return torch.cat(parts, dim=-1).to(vectors.dtype)


def _numbers(weight: PackedWeight, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Return rows of a weight, from a multiple of 16 on, as numbers of a type."""
    last = min(last, weight.out_features)
    if kernels_loaded() and weight.low.device.type == "cpu" and dtype in _DTYPES:
        blocks = first // ROWS, -(-(last - first) // ROWS)
        numbers: Tensor = torch.ops.lacache.packed_numbers(*_arguments(weight), *blocks, dtype)
        return numbers[: last - first]
    return weight.unpack(first, last).to(dtype)


def _kernel_linear(vectors: Tensor, weight: PackedWeight, *, exact: bool) -> Tensor:
    wide = vectors.float().contiguous()
    product: Tensor = torch.ops.lacache.packed_product(*_arguments(weight), wide, exact)
    return product.to(vectors.dtype)


def _arguments(weight: PackedWeight) -> tuple[Any, ...]:
    tensors = (getattr(weight, name) for name in TENSORS)
    return (*tensors, weight.zero, weight.out_features)

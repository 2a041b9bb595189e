"""Linear layers of bfloat16 models with weights in the order that the processor multiplies in.

oneDNN reorders a weight in every call. For the 64 rows of a chunk, or one token, that takes as long
as the product itself. Only benchmarks of quality use this, for more samples in the same hours:
products are summed in another order, so scores and losses may differ in rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

PACKED_ROWS = 64
"""Rows that the order is chosen for; others work too."""


def can_pack() -> bool:
    """Return whether torch packs bfloat16 weights on this processor."""
    operators: Any = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and bool(operators._is_mkldnn_bf16_supported())


def pack_linears(model: nn.Module) -> int:
    """Let a model's bfloat16 linear layers on a CPU use packed copies; return how many do.

    None do on processors that torch does not pack such weights on.

    The layers keep their weights, so memory for them doubles.
    """
    chosen = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
    ]
    if not can_pack():
        return 0
    for module in chosen:
        module.forward = _packed_forward(module)  # type: ignore[method-assign]
    return len(chosen)


def _packed_forward(module: nn.Linear) -> Any:
    operators: Any = torch.ops.mkldnn
    weight = operators._reorder_linear_weight(module.weight.detach(), PACKED_ROWS)
    bias = module.bias

    def forward(inputs: Tensor) -> Tensor:
        output: Tensor = operators._linear_pointwise(inputs, weight, bias, "none", [], "")
        return output

    return forward

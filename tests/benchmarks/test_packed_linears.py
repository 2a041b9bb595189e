import copy

import pytest
import torch

from benchmarks._packed_linears import can_pack, pack_linears
from tests.engine.tiny import tiny_llama


@pytest.mark.parametrize("rows", [1, 3, 64, 100])
@torch.no_grad()
def test_packed_weights_give_the_same_logits(rows: int) -> None:
    plain = tiny_llama().to(torch.bfloat16)
    packed = copy.deepcopy(plain)
    linears = [module for module in packed.modules() if isinstance(module, torch.nn.Linear)]
    assert linears
    assert pack_linears(packed) == (len(linears) if can_pack() else 0)
    ids = torch.arange(rows)[None] % 90
    torch.testing.assert_close(
        packed(ids).logits.float(), plain(ids).logits.float(), atol=0.02, rtol=0.02
    )


def test_other_types_stay_as_they_are() -> None:
    model = tiny_llama()
    assert pack_linears(model) == 0
    assert all("forward" not in vars(module) for module in model.modules())

"""What CUDA graphs ask of a step, as far as it shows without a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch._inductor.utils import run_and_get_code

from lacache.kernels.build import load_kernels
from lacache.policies import Group, Groups, Ladder, Streaming
from tests.cache.tiny_models import biased_model, tiny_model
from tests.engine.ragged import new_runner
from tests.policies.sized import Sized

BY_HEAD = (
    None,
    Groups(
        (
            Group(Ladder(span=1, sinks=2, recent=4, evict_batch=4), (1, (3, 0), (0, 1)), 24),
            Group(Streaming(sinks=2, evict_batch=4), ((0, 0), (3, 1)), 9),
            Group(Streaming(sinks=1, evict_batch=4), (2, 4), 14),
        )
    ),
)


@pytest.mark.parametrize(
    ("family", "changes", "sized", "kv_dtype"),
    [
        ("llama", {}, BY_HEAD, "int8"),
        ("biased", {}, (24, Streaming(evict_batch=3)), "int4"),
        (
            "gemma3",
            {
                "num_hidden_layers": 3,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            (16, Ladder(span=1, sinks=2, evict_batch=2)),
            None,
        ),
    ],
    ids=["llama", "biased", "gemma3"],
)
def test_a_step_writes_only_to_tensors_that_never_move(
    family: str, changes: dict[str, Any], sized: Sized, kv_dtype: str | None
) -> None:
    """Else the compiler gives CUDA graphs up, and says so only in its log."""
    found: list[tuple[set[int], set[int], list[Tensor]]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        context = TracingContext.try_get()
        assert context is not None
        info = context.fw_metadata
        assert info is not None
        written = set(info.mutated_inp_runtime_indices)
        found.append((written, set(info.static_input_indices), inputs))
        return graph.forward

    tiny = biased_model() if family == "biased" else tiny_model(family, **changes)
    runner = new_runner(tiny, sized, 3, aot_autograd(fw_compiler=compiler), kv_dtype)
    runner.warm_up()
    [(written, static, inputs)] = found
    stored = {id(storage): len(storage.tensors) for storage in runner.cache.storages()}
    for heads in runner.cache.all_kv_heads():
        if heads.unrotated_keys is not None:
            stored.pop(id(heads.unrotated_keys.storage), None)
    assert len(written) == sum(stored.values())
    assert written <= static
    # All but the tokens is at fixed addresses, so nothing else is copied for a replay.
    moving = [inputs[number] for number in set(range(len(inputs))) - static]
    assert [tensor.shape for tensor in moving] == [(3, 1)]


@pytest.mark.slow
def test_a_compiled_step_copies_no_pool() -> None:
    """The compiler writes in place only where it sees that nothing needs the former content."""
    load_kernels()
    tiny = tiny_model("llama", num_hidden_layers=2)
    sized = 16, Streaming(evict_batch=2)
    runner = new_runner(tiny, sized, 2, "inductor", kernels=True, fuse=False)
    _, [code] = run_and_get_code(runner.warm_up)
    [pool] = runner.cache.pools
    rows = len(pool.keys.flat[0])
    # Of tensors with as many rows there are the two that it is given.
    assert f"({rows}, 8)" in code
    assert f"empty_strided_cpu(({rows}, 8)" not in code

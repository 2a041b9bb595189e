"""The type that commands compute with where they read much."""

from rich.console import Console


def computing_dtype(dtype: str) -> str:
    """`auto` is the stored type, but float32 on a processor without 16-bit arithmetic.

    That is twice the memory and a tenth of the time.
    """
    import torch

    from lacache.engine.cpu.arithmetic import has_arithmetic

    if dtype != "auto" or has_arithmetic(torch.bfloat16):
        return dtype
    Console(stderr=True).print(
        "This processor has no 16-bit arithmetic, so all is computed in float32; "
        "--dtype bfloat16 takes half the memory and ten times as long."
    )
    return "float32"

"""Flash attention of the GPU benchmark, over a slow twin of the kernel that only GPUs have."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from benchmarks._flash import largest_difference


def slow_varlen(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_keys: int,
    *,
    scale: float,
    enable_gqa: bool,
    seqused_k: Tensor,
) -> Tensor:
    """Sequence by sequence: queries [Tq, Hq, D], keys and values [Tk, 1, D]."""
    assert enable_gqa
    output = torch.empty_like(query)
    for number, used in enumerate(seqused_k.tolist()):
        new = slice(int(query_starts[number]), int(query_starts[number + 1]))
        start, stop = int(key_starts[number]), int(key_starts[number + 1])
        assert new.stop - new.start <= longest_query
        assert used <= stop - start <= longest_keys
        held = slice(start, start + used)
        scores = torch.einsum("qhd,kd->hqk", query[new], keys[held, 0]) * scale
        output[new] = torch.einsum("hqk,kd->qhd", scores.softmax(dim=-1), values[held, 0])
    return output


def test_flash_attends_as_fused_attention_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", slow_varlen)
    assert largest_difference(torch.device("cpu"), torch.float32) < 1e-6


def test_a_wrong_length_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_too_many(*arguments: Any, seqused_k: Tensor, **options: Any) -> Tensor:
        longer = (seqused_k + 1).clamp(max=256)
        return slow_varlen(*arguments, seqused_k=longer, **options)

    monkeypatch.setattr(varlen, "varlen_attn", one_too_many)
    assert largest_difference(torch.device("cpu"), torch.float32) > 0.1

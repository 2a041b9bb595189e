"""Packed weights are exactly those of a GGUF file, and products of them as near as said."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lacache.kernels.build import load_kernels
from lacache.models.packed import layers
from lacache.models.packed.blocks import KINDS, read_blocks
from lacache.models.packed.layers import exact_linear, rounded_linear, unpacked_linear
from lacache.models.packed.weight import PackedWeight
from tests.models.tiny import random_blocks

BITS = {
    **{"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5},
    **{"Q4_K": 4.625, "Q5_K": 5.625, "Q6_K": 6.5625},
}


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


def make(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[PackedWeight, Tensor]:
    """A packed weight, and its numbers as the package gguf has them."""
    blocks = random_blocks(kind, rows, columns, np.random.default_rng(seed))
    numbers = dequantize(blocks, GGMLQuantizationType[kind])
    packed = PackedWeight.pack(read_blocks(kind, torch.from_numpy(blocks)))
    return packed, torch.from_numpy(numbers)


def rounded(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors rounded to 8 bits in groups of 16, in float64: the slow twin's.

    Also the step of each number that lies so near between two that float32 may round it otherwise.
    """
    groups = vectors.double().unflatten(-1, (-1, 16))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    steps = groups / scales.where(scales > 0, 1.0)
    is_between = (steps - steps.floor() - 0.5).abs() < 1e-4
    return (steps.round() * scales).flatten(-2), (is_between * scales).flatten(-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_numbers_are_those_of_the_file(kind: str, rows: int) -> None:
    packed, numbers = make(kind, rows, 512)
    assert torch.equal(packed.unpack(), numbers)
    some = torch.tensor([rows - 1, 0, rows // 2, 0])
    assert torch.equal(packed.unpack_at(some), numbers[some])
    first, last = rows // 3, rows // 2 + 1
    assert torch.equal(packed.unpack(first, last), numbers[first:last])


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_about_those_of_the_file(kind: str) -> None:
    packed, numbers = make(kind, 32, 512)
    assert packed.num_bytes * 8 == BITS[kind] * numbers.numel()
    assert (packed.out_features, packed.in_features) == numbers.shape


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_and_metadata_are_all_of_it(kind: str) -> None:
    packed, numbers = make(kind, 5, 256)
    again = PackedWeight.from_tensors(packed.tensors(), packed.metadata())
    assert torch.equal(again.unpack(), numbers)


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 5),
    num_vectors=st.sampled_from([1, 2, 4, 5, 8, 9, 13, 40]),
    seed=st.integers(0, 1000),
)
def test_products_are_those_with_rounded_vectors(
    kind: str, rows: int, blocks: int, num_vectors: int, seed: int
) -> None:
    packed, numbers = make(kind, rows, blocks * (256 if kind.endswith("K") else 32), seed)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_vectors, packed.in_features, generator=generator)
    vectors[0, :16] = 0
    expected, between = rounded(vectors)
    bound = (1e-5 * expected.abs() + between) @ numbers.double().abs().T
    error = (rounded_linear(vectors, packed) - expected @ numbers.double().T).abs()
    assert (error <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_has_the_same_product_among_others(kind: str) -> None:
    packed, _ = make(kind, 40, 512)
    vectors = torch.randn(23, 512, generator=torch.Generator().manual_seed(0))
    together = rounded_linear(vectors, packed)
    alone = torch.cat([rounded_linear(vector[None], packed) for vector in vectors])
    few = torch.cat([rounded_linear(part, packed) for part in torch.split(vectors, 5)])
    assert torch.equal(together, alone)
    assert torch.equal(few, alone)


@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 20),
    num_vectors=st.integers(12, 60),
    seed=st.integers(0, 1000),
)
def test_products_without_rounding_are_exact(
    kind: str, rows: int, blocks: int, num_vectors: int, seed: int
) -> None:
    packed, numbers = make(
        kind, rows, (1 + blocks // 8) * 256 if kind.endswith("K") else blocks * 32, seed
    )
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_vectors, packed.in_features, generator=generator)
    expected = vectors.double() @ numbers.double().T
    # What float32 sums can be off by: relative to the sum of the magnitudes.
    slack = 1e-6 * (vectors.double().abs() @ numbers.double().abs().T) + 1e-30
    assert ((exact_linear(vectors, packed) - expected).abs() <= slack).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernels", [True, False])
def test_without_rounding_numbers_are_unpacked(
    kind: str, dtype: torch.dtype, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "kernels_loaded", lambda: kernels)
    monkeypatch.setattr(layers, "_BLOCK", 8192)
    packed, numbers = make(kind, 70, 256)
    # Products with unit vectors are the numbers themselves.
    found = unpacked_linear(torch.eye(256, dtype=dtype), packed).T
    assert torch.equal(found, numbers.to(dtype))


@pytest.mark.parametrize(
    "change",
    [
        {"scales": torch.zeros(3, 2, 16, dtype=torch.int16)},
        {"low": torch.zeros(3, 64, 16, 4, dtype=torch.uint8)},
        {"factors": torch.zeros(3, 8, 16, dtype=torch.int8)},
        {"offsets": torch.zeros(3, 1, 16, dtype=torch.int16)},
    ],
)
def test_the_kernel_refuses_tensors_that_do_not_fit(change: dict[str, Tensor]) -> None:
    packed, _ = make("Q6_K", 40, 256)
    wrong = PackedWeight.from_tensors(packed.tensors() | change, packed.metadata())
    with pytest.raises(RuntimeError, match="lacache::packed"):
        rounded_linear(torch.zeros(1, 256), wrong)


def test_the_kernel_refuses_fewer_exact_products_than_it_computes_at_once() -> None:
    packed, _ = make("Q6_K", 40, 256)
    with pytest.raises(RuntimeError, match="lacache::packed_product"):
        exact_linear(torch.zeros(1, 256), packed)

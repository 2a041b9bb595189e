"""A GGUF file is packed part by part: never more than one is unpacked, and the result is equal."""

import gc
import weakref
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lacache.errors import ModelError
from lacache.models import convert
from lacache.models.convert import ensure_converted
from lacache.models.files import MANIFEST
from lacache.models.packed import matrices, parts
from lacache.models.packed.folder import PACKED
from lacache.models.packed.parts import GgufParts, frugal_gguf
from tests.models.tiny import LAYERS, random_blocks, write_gguf

KINDS = [("Q4_K", "Q6_K"), ("Q2_K", "Q4_K", "Q8_0"), ()]


def convert_packed(path: Path, folder: Path) -> Path:
    return ensure_converted(folder, lambda: path, notice="tiny", packed=True, progress=False)


def read_parts(path: Path) -> GgufParts:
    return GgufParts.from_reader(path, gguf.GGUFReader(path))


@pytest.fixture(params=[False, True])
def head(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("kinds", KINDS)
def test_parts_make_the_model_that_the_whole_file_makes(
    kinds: tuple[str, ...], head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, width=256, kinds=kinds, head=head)
    whole = convert_packed(path, tmp_path / "whole" / "tiny")
    monkeypatch.setattr(convert, "PART_WEIGHTS", 1)
    monkeypatch.setattr(parts, "_UNPACKED_BYTES", 1000)
    monkeypatch.setattr(matrices, "_BLOCK", 1)
    folder = convert_packed(path, tmp_path / "parts" / "tiny")
    assert (folder / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()
    assert (folder / PACKED).read_bytes() == (whole / PACKED).read_bytes()


def test_one_part_is_unpacked_at_a_time(
    head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, width=256, kinds=("Q4_K",), head=head)
    load, unpacked, loaded = convert._load, [], []
    normal = torch.Tensor.normal_

    def without_memory(weight: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        assert weight.is_meta
        return normal(weight, *args, **options)

    def traced(kind: Any, part: Path, **options: Any) -> tuple[Any, set[str]]:
        gc.collect()
        assert not [weight for weight in unpacked if weight() is not None]
        with monkeypatch.context() as patch:
            # Random numbers for the weights of other parts would take the memory of all.
            patch.setattr(torch.Tensor, "normal_", without_memory)
            model, missing = load(kind, part, **options)
        weights = {id(w): w for name, w in model.named_parameters() if name not in missing}
        unpacked.extend(weakref.ref(weight) for weight in weights.values() if weight.ndim == 2)
        loaded.append(sum(weight.numel() for weight in weights.values()))
        return model, missing

    monkeypatch.setattr(convert, "_load", traced)
    monkeypatch.setattr(convert, "PART_WEIGHTS", 1)
    convert_packed(path, tmp_path / "tiny")
    total = sum(tensor.num_weights for tensor in read_parts(path).tensors)
    assert sum(loaded) == total
    # Embedding, norm (and head), then the layers.
    assert len(loaded) == LAYERS + (3 if head else 1)
    assert max(loaded) < 0.5 * total


def test_missing_weights_of_a_part_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, leave_out="blk.1.attn_q")
    monkeypatch.setattr(convert, "PART_WEIGHTS", 1)
    with pytest.raises(ModelError, match=r"weights model\.layers\.1\.self_attn\.q_proj"):
        convert_packed(path, tmp_path / "models" / "tiny")
    assert {file.suffix for file in (tmp_path / "models").iterdir()} == {".lock"}


@pytest.mark.parametrize("limit", [1, 5_000, 10**9])
def test_blocks_stay_together_within_the_limit(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, head=True)
    content = read_parts(path)
    for tied in (False, True):
        place = {
            tensor.name: number
            for number, part in enumerate(content.split(limit, tied=tied))
            for tensor in part
        }
        assert set(place) == {tensor.name for tensor in content.tensors}
        for layer in range(LAYERS):
            assert len({place[name] for name in place if name.startswith(f"blk.{layer}.")}) == 1
        together = place["token_embd.weight"] == place["output.weight"]
        assert together == (tied or limit == 10**9)


def test_a_part_is_a_gguf_file_with_the_same_bytes(tmp_path: Path) -> None:
    path, part = tmp_path / "tiny.gguf", tmp_path / "part.gguf"
    write_gguf(path, width=256, kinds=("Q4_K", "Q6_K"))
    whole = gguf.GGUFReader(path)
    for tensors in GgufParts.from_reader(path, whole).split(1, tied=False):
        GgufParts.from_reader(path, whole).write(tensors, part)
        read = gguf.GGUFReader(part)
        names = [tensor.name for tensor in tensors]
        assert [tensor.name for tensor in read.tensors] == names
        for found in read.tensors:
            expected = next(t for t in whole.tensors if t.name == found.name)
            assert found.tensor_type == expected.tensor_type
            assert np.array_equal(found.data, expected.data)
        left = {name for name in whole.fields if not name.startswith("tokenizer.")}
        assert set(read.fields) == left


def test_a_matrix_is_unpacked_the_same_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "_UNPACKED_BYTES", 1000)
    dequantize, names = gguf.dequantize, gguf.get_tensor_name_map
    blocks = random_blocks("Q4_K", 50, 512, np.random.default_rng(0))
    kind = gguf.GGMLQuantizationType.Q4_K
    with frugal_gguf():
        assert np.array_equal(gguf.dequantize(blocks, kind), dequantize(blocks, kind))
        arch = gguf.MODEL_ARCH.LLAMA
        assert gguf.get_tensor_name_map(arch, 2) is gguf.get_tensor_name_map(arch, 2)
    assert (gguf.dequantize, gguf.get_tensor_name_map) == (dequantize, names)

import torch

from lacache.models.fingerprint import fingerprint
from tests.cache.tiny_models import tiny_model


def test_a_checkpoint_has_one_fingerprint_in_every_precision() -> None:
    # As in a file: written in bfloat16, loaded in any type.
    model = tiny_model("llama").to(torch.bfloat16)
    original = fingerprint(model)
    assert fingerprint(model.to(torch.float32)) == original
    assert fingerprint(model.to(torch.float16)) == original


def test_a_float32_checkpoint_has_the_fingerprint_of_its_bfloat16_rounding() -> None:
    model = tiny_model("qwen3")
    original = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) == original


def test_other_weights_differ_in_the_second_part_alone() -> None:
    shape, weights = fingerprint(tiny_model("llama", seed=0)).split("-")
    other_shape, other_weights = fingerprint(tiny_model("llama", seed=1)).split("-")
    assert shape == other_shape
    assert weights != other_weights


def test_another_shape_differs_in_the_first_part() -> None:
    shape = fingerprint(tiny_model("llama")).split("-")[0]
    assert fingerprint(tiny_model("llama", num_hidden_layers=4)).split("-")[0] != shape
    assert fingerprint(tiny_model("qwen2")).split("-")[0] != shape


def test_weights_that_are_not_in_memory_leave_the_shape() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    model.model.layers[3].to("meta")
    assert fingerprint(model).split("-")[0] == before.split("-")[0]


def test_one_changed_matrix_shows() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    model.model.layers[3].self_attn.k_proj.weight.data *= 1.1
    assert fingerprint(model) != before

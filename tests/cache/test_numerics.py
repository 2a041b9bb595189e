"""Low precision: keys are rounded once on reading, however often the cache was compacted."""

import torch

from lacache import Ladder
from lacache.cache.layer_group import LayerGroup
from lacache.cache.layers import BoundedLayer
from lacache.models.model_info import model_info
from tests.cache.slow_cache import rotate
from tests.cache.tiny_models import tiny_model
from tests.policies.sized import schedule

CONFIG = (64, Ladder(span=2, sinks=4, recent=20, evict_batch=1, positions="slots"))


def read_keys(dtype: torch.dtype, num_tokens: int) -> tuple[torch.Tensor, int, LayerGroup]:
    """Keys that a layer returns after `num_tokens`, one by one, at ever growing positions."""
    model = tiny_model("llama")
    rotation = model_info(model).growing[0].rotation
    inv_freq = model.model.rotary_emb.inv_freq
    group = LayerGroup(schedule(CONFIG, 5))
    layer = BoundedLayer(group, 0, rotation)
    generator = torch.Generator().manual_seed(0)
    for position in range(num_tokens):
        key = torch.randn(1, 2, 1, 8, generator=generator)
        rotated = rotate(key, torch.tensor([position]), inv_freq).to(dtype)
        group.begin(1, position)
        keys, _ = layer.update(rotated, rotated)
        group.commit()
    return keys, group.num_compactions, group


def test_a_thousand_compactions_stay_within_one_shot_rounding() -> None:
    num_tokens = 2100
    low, compactions, group = read_keys(torch.bfloat16, num_tokens)
    assert compactions >= 1000
    exact, _, _ = read_keys(torch.float32, num_tokens)
    generator = torch.Generator().manual_seed(0)
    fresh = torch.cat([torch.randn(1, 2, 1, 8, generator=generator) for _ in range(num_tokens)], 2)
    tokens = group.kept().by_pattern[group.schedule.patterns[0]]
    slots = torch.arange(len(tokens)) + group.state.num_evicted
    inv_freq = tiny_model("llama").model.rotary_emb.inv_freq
    reference = rotate(fresh[:, :, tokens], slots, inv_freq)
    torch.testing.assert_close(exact, reference, atol=1e-3, rtol=0)
    error = (low.float() - reference).norm() / reference.norm()
    one_shot = (reference.bfloat16().float() - reference).norm() / reference.norm()
    # Rounded when the model gave it, and once more when it was read.
    assert error <= 2 * one_shot
    assert error > 0

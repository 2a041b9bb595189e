"""Sequences of a static cache as tensors; tests/engine/test_snapshot.py restores them."""

import torch

from lacache.cache.static.sequence_tensors import export_sequence, upgrade_tensors
from lacache.engine.runner import Runner
from lacache.policies import Ladder
from tests.cache.tiny_models import random_ids, tiny_model
from tests.policies.sized import bind_to

LADDER = (24, Ladder(span=2, overlap=0, sinks=2, evict_batch=3))


def test_names_of_snapshots_of_0_1_are_upgraded() -> None:
    model = tiny_model("gemma3")
    runner = Runner(model, bind_to(model, LADDER), 1, None)
    runner.prefill(0, random_ids(20)[0])
    tensors = export_sequence(runner.cache, 0)
    old = {
        name.replace("original_positions", "came_in_at")
        .replace(".heads.", ".part.")
        .replace("unrotated_keys", "came_in"): tensor
        for name, tensor in tensors.items()
    }
    del old["base"]
    assert {"group.0.came_in_at", "layer.0.ring.keys.0"} <= old.keys()
    assert any(".part.0.came_in.0" in name for name in old)
    for given in (old, tensors):
        upgraded = upgrade_tensors(given)
        assert upgraded.keys() == tensors.keys()
        assert all(torch.equal(upgraded[name], tensors[name]) for name in tensors)


def test_exported_tensors_are_copies() -> None:
    model = tiny_model("llama")
    runner = Runner(model, bind_to(model, LADDER), 1, None)
    runner.prefill(0, random_ids(9)[0])
    before = export_sequence(runner.cache, 0)
    copies = {name: tensor.clone() for name, tensor in before.items()}
    runner.cache.clear(0)
    assert all(torch.equal(before[name], copies[name]) for name in before)

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lacache.policies.plan_record import plan_record
from lacache.policies.resolve import default_evict_batch

from lacache import LaCache, Ladder, Streaming
from lacache.cli.setup import CacheOptions
from lacache.errors import ConfigError
from tests.engine.tiny import tiny_llama


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.mark.parametrize(
    ("capacity", "sinks", "evict_batch"),
    [(512, 4, 64), (7, 4, 1), (1, 0, 1), (64, 60, 4), (100, 0, 12)],
)
def test_refill_is_an_eighth_where_there_is_room(
    capacity: int, sinks: int, evict_batch: int
) -> None:
    assert default_evict_batch(capacity, sinks) == evict_batch


def pieces_of(model: Any, num_tokens: int, **options: Any) -> list[int]:
    """How long the pieces are in which a prompt is read."""
    pieces: list[int] = []
    cache = CacheOptions(**{"policy": "ladder", "budget": None} | options).make(model, num_tokens)
    cache.prefill(model, torch.ones(1, num_tokens, dtype=torch.long), pieces.append)
    return pieces


def test_the_default_budget_is_512(model: Any) -> None:
    assert pieces_of(model, 600)[:2] == [512, 64]


@pytest.mark.parametrize(
    ("policy", "budget", "pieces"),
    [
        ("streaming", "64", [64, 8, 8]),
        ("streaming", "0.25", [125, 15, 15]),
        # 5 layers x 2 heads x 8 values x 2 x 4 bytes: 640 bytes a token.
        ("streaming", "80KiB", [128, 16, 16]),
        ("streaming", "0.001", [5, 1, 1]),
        # Whole bands are freed, here two slots each.
        ("ladder", "64", [64, 8, 8]),
        ("ladder", "0.25", [125, 16, 16]),
        ("ladder", "80KiB", [128, 16, 16]),
        ("ladder", "0.001", [8, 2, 2]),
    ],
)
def test_the_capacity_decides_the_refill(
    model: Any, policy: str, budget: str, pieces: list[int]
) -> None:
    assert pieces_of(model, 500, policy=policy, budget=budget)[:3] == pieces


def test_a_given_refill_is_kept(model: Any) -> None:
    assert pieces_of(model, 100, policy="streaming", budget="64", evict_batch=3)[:3] == [64, 3, 3]


def test_full_has_no_budget(model: Any) -> None:
    assert pieces_of(model, 600, policy="full") == [600]
    with pytest.raises(ConfigError, match="policy 'full' has no budget"):
        CacheOptions(policy="full", budget="512").make(model, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"budget": "much"}, "budget='much'"), ({"window_layers": "x"}, "window_layers='x'")],
)
def test_what_cannot_be_read_is_refused_without_a_model(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CacheOptions(**{"policy": "ladder", "budget": None} | options)


def test_a_preset_or_a_plan_instead_of_a_policy(model: Any, tmp_path: Path) -> None:
    assert isinstance(made(model).policy, Ladder)
    assert (
        made(model, preset="global").policy == LaCache.from_model(model, 64, preset="global").policy
    )
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_record(Streaming(40))))
    assert CacheOptions(budget=None, plan=path).make(model, 100).policy == Streaming(40)


@pytest.mark.parametrize(
    "options",
    [{"budget": "64"}, {"preset": "local"}, {"policy": "full"}, {"span": 2}, {"sinks": 0}],
)
def test_a_plan_stands_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name} cannot be given beside --plan"):
        CacheOptions(**{"budget": None} | options, plan=tmp_path / "plan.json")


def made(model: Any, **options: Any) -> LaCache:
    return CacheOptions(budget="64", **options).make(model, 100)

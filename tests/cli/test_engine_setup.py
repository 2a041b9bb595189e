from pathlib import Path
from typing import Any

import pytest
import torch

from lacache import LaCache
from lacache.cli.engine_setup import CacheOptions
from lacache.errors import ConfigError, InputError
from lacache.policies import Streaming, parse_policy
from tests.engine.tiny import tiny_llama


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


def chunks_of(model: Any, num_tokens: int, budget: str | None, policy: str) -> list[int]:
    """How long the chunks are in which a prompt is prefilled."""
    chunks: list[int] = []
    cache = CacheOptions.parse(budget, policy).new_cache(model)
    cache.prefill(model, torch.ones(1, num_tokens, dtype=torch.long), chunks.append)
    return chunks


def test_the_default_budget_is_512(model: Any) -> None:
    assert chunks_of(model, 600, None, "streaming")[:2] == [512, 64]


@pytest.mark.parametrize(
    ("policy", "budget", "chunks"),
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
def test_the_default_evict_batch_is_an_eighth_of_the_capacity(
    model: Any, policy: str, budget: str, chunks: list[int]
) -> None:
    assert chunks_of(model, 500, budget, policy)[:3] == chunks


def test_a_given_evict_batch_is_used(model: Any) -> None:
    assert chunks_of(model, 100, "64", "streaming:evict_batch=3")[:3] == [64, 3, 3]


def test_full_takes_no_budget(model: Any) -> None:
    assert chunks_of(model, 600, None, "full") == [600]
    with pytest.raises(ConfigError, match="budget=512 cannot be given with policy 'full'"):
        CacheOptions.parse("512", "full")


@pytest.mark.parametrize(
    ("budget", "policy", "message"),
    [
        ("much", "ladder", "budget='much'"),
        ("64", "ladder:window_layers=x", "window_layers=x of policy 'ladder' cannot be read"),
        ("64", "groups:0-4@9@streaming", "budget=64 cannot be given with policy 'groups:"),
    ],
)
def test_invalid_options_are_refused_without_a_model(
    budget: str, policy: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CacheOptions.parse(budget, policy)


def test_the_cache_is_that_of_the_library(model: Any, tmp_path: Path) -> None:
    for policy in ("balanced", "recall", "ladder:span=2"):
        made = CacheOptions.parse("64", policy).new_cache(model)
        assert made.policy == LaCache(model, 64, policy).policy
    path = tmp_path / "policy.txt"
    path.write_text("streaming:sinks=2\n")
    assert CacheOptions.parse("40", f"@{path}").policy == Streaming(sinks=2)
    with pytest.raises(InputError, match="No such file"):
        CacheOptions.parse("40", f"@{tmp_path}/none")
    assert str(parse_policy(f"@{path}")) == "streaming:sinks=2"

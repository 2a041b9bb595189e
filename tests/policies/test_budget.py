"""Budgets as users write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (512, Budget(tokens=512)),
        ("512", Budget(tokens=512)),
        (" 512 ", Budget(tokens=512)),
        (0.25, Budget(share=0.25)),
        (1.0, Budget(share=1.0)),
        ("0.25", Budget(share=0.25)),
        ("64MiB", Budget(num_bytes=64 * 1024**2)),
        ("64 mib", Budget(num_bytes=64 * 1024**2)),
        ("1.5GB", Budget(num_bytes=1_500_000_000)),
        ("700B", Budget(num_bytes=700)),
    ],
)
def test_reads(given: object, parsed: Budget) -> None:
    assert parse_budget(given) == parsed


@pytest.mark.parametrize(
    "given",
    [
        0,
        -1,
        True,
        0.0,
        1.5,
        -0.5,
        float("nan"),
        "0",
        "1.5",
        "-3",
        "",
        "MiB",
        "3 parsecs",
        "0B",
        None,
        [512],
        "inf",
        "1e3",
    ],
)
def test_refuses(given: object) -> None:
    with pytest.raises(ConfigError, match="try 512"):
        parse_budget(given)


def test_resolves() -> None:
    sizes = {"bytes_per_token": 100, "prompt_tokens": 90, "smallest": 10}
    assert parse_budget(64).capacity(**sizes) == 64
    assert parse_budget(0.5).capacity(**sizes) == 45
    assert parse_budget(0.51).capacity(**sizes) == 46
    assert parse_budget(0.01).capacity(**sizes) == 10
    assert parse_budget("2KB").capacity(**sizes) == 20
    with pytest.raises(ConfigError, match=r"holds 9 tokens of 100 bytes.*try '1000B'"):
        parse_budget("999B").capacity(**sizes)


def test_a_share_that_binary_numbers_do_not_have() -> None:
    for percent in range(1, 100):
        for tokens in range(0, 2_000, 50):
            budget = parse_budget(percent / 100)
            capacity = budget.capacity(bytes_per_token=1, prompt_tokens=tokens, smallest=0)
            assert capacity == -(-percent * tokens // 100)


@given(st.floats(1e-9, 1.0))
def test_a_share_survives_its_text(share: float) -> None:
    budget = Budget(share=share)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    "sizes",
    [{}, {"tokens": 5, "share": 0.5}, {"share": 7.0}, {"tokens": -5}, {"num_bytes": -1}],
)
def test_a_budget_is_one_size(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"budget"):
        Budget(**sizes)

"""Lists of layers in the text of a policy: single ones and ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.policies import Ladder, parse_policy


def parse_layers(text: str) -> tuple[int, ...]:
    policy = parse_policy(f"ladder:window_layers={text}")
    assert isinstance(policy, Ladder)
    return policy.window_layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("7", (7,)),
        ("0-9+20", (*range(10), 20)),
        ("3+1-2", (1, 2, 3)),
        ("5+4-6+5", (4, 5, 6)),
        ("2-2", (2,)),
    ],
)
def test_layers_are_parsed(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), min_size=1, max_size=5))
def test_ranges_contain_their_layers(ranges: list[tuple[int, int]]) -> None:
    text = "+".join(f"{first}-{first + more}" for first, more in ranges)
    expected = {layer for first, more in ranges for layer in range(first, first + more + 1)}
    assert parse_layers(text) == tuple(sorted(expected))


@pytest.mark.parametrize("text", ["", "a", "1+", "-3", "1.5", "3-1", "0-999999999999"])
def test_invalid_lists_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="window_layers"):
        parse_layers(text)

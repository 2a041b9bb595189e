import pytest
from hypothesis import given
from hypothesis import strategies as st
from lacache.cli.layers import parse_layers

from lacache.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("", ()),
        ("  ", ()),
        ("7", (7,)),
        ("0-9,20", (*range(10), 20)),
        (" 3 , 1-2 ", (1, 2, 3)),
        ("5,4-6,5", (4, 5, 6)),
        ("2-2", (2,)),
    ],
)
def test_layers_are_read(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), max_size=5))
def test_ranges_are_what_they_say(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" for first, more in ranges)
    expected = {layer for first, more in ranges for layer in range(first, first + more + 1)}
    assert parse_layers(text) == tuple(sorted(expected))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "'a', which is neither a layer nor a range; try 0-9,20"),
        ("1,", "has '', which is neither"),
        ("-3", "'-3'"),
        ("1.5", "'1.5'"),
        ("3-1", "the range 3-1, which runs backwards; try 1-3"),
        ("0-999999999999", "no model has that many"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_layers(text)

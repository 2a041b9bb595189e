import pytest

from lacache.cli.tune import _sizes
from lacache.policies.budget import parse_budget


@pytest.mark.parametrize(
    ("budget", "length", "context", "sizes"),
    [
        ("512", None, 8192, (512, 2048)),
        ("128", None, 8192, (128, 1024)),
        ("4096", None, 8192, (4096, 8192)),
        ("4096", None, None, (4096, 16384)),
        ("512", 700, 600, (512, 700)),
        ("0.25", None, 8192, (512, 2048)),
        ("0.25", 1000, 8192, (250, 1000)),
        ("1000B", None, 8192, (100, 1024)),
    ],
)
def test_capacity_and_length_follow_from_the_budget(
    budget: str, length: int | None, context: int | None, sizes: tuple[int, int]
) -> None:
    assert _sizes(parse_budget(budget), length, 10, context) == sizes

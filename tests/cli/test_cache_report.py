import pytest

from lacache import LaCache
from lacache.cli.output import format_bytes, report_record
from tests.engine.tiny import tiny_llama


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20 + 2**19, "5.5 MiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
    ],
)
def test_bytes_are_readable(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize("policy", ["streaming", "full"])
def test_no_limit_is_null(policy: str) -> None:
    capacity = None if policy == "full" else 8
    record = report_record(LaCache(tiny_llama(), capacity, policy).report())
    assert record["capacity"] == capacity
    assert record["num_seen"] == 0

"""Which type commands compute with."""

import pytest
import torch

from lacache.cli.preflight import computing_dtype


@pytest.mark.parametrize(
    ("capability", "given", "found"),
    [
        ("AVX2", "auto", "float32"),
        ("AVX2", "bfloat16", "bfloat16"),
        ("AVX512", "auto", "auto"),
    ],
)
def test_auto_avoids_slow_16_bit_arithmetic(
    capability: str,
    given: str,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert computing_dtype(given) == found
    said = " ".join(capsys.readouterr().err.split())
    assert ("--dtype bfloat16" in said) is (found != given)

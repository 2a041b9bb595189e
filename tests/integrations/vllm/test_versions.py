"""Which releases of vLLM are taken."""

import pytest

from lacache.integrations.vllm.versions import unsupported


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.32.1+cpu"])
def test_supported(version: str) -> None:
    assert unsupported(version) is None


@pytest.mark.parametrize("version", ["0.30.2", "0.33.0", "1.31.0", "dev", "0.x"])
def test_unsupported(version: str) -> None:
    reason = unsupported(version)
    assert reason is not None
    assert version in reason
    assert "install vLLM 0.31 to 0.32" in reason

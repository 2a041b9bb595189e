from pathlib import Path

import pytest

from tests.models.tiny import save_directory, write_gguf


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that no test may change."""
    return save_directory(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that no test may change."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test's own."""
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"

import sys
from pathlib import Path

import pytest

from lacache.common.packages import package_folder, require_modules
from lacache.errors import MissingExtraError


def test_folder_is_found_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacache_fake_data").mkdir()
    (tmp_path / "lacache_fake_data" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = package_folder("lacache_fake_data", gives="data", install="pip install it")
    assert found == tmp_path / "lacache_fake_data"
    assert "lacache_fake_data" not in sys.modules


def test_missing_package_names_the_command() -> None:
    with pytest.raises(MissingExtraError, match="holds data, is not installed; try: pip install i"):
        package_folder("lacache_nowhere", gives="data", install="pip install it")


def test_missing_module_names_the_extra() -> None:
    require_modules("json", "sys", why="nothing", extra="none")
    with pytest.raises(MissingExtraError, match=r"it needs lacache_a and lacache_b.*lacache\[e\]"):
        require_modules("json", "lacache_a", "lacache_b", why="it", extra="e")

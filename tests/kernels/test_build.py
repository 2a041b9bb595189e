"""What can go wrong where the kernels are compiled, and what must not."""

import sys
from pathlib import Path
from typing import Any

import pytest

from lacache import Engine
from lacache.errors import CompilerError
from lacache.kernels import build
from lacache.kernels.build import build_kernels
from tests.cache.tiny_models import random_ids, tiny_model


def fake_compiler(folder: Path, code: str) -> str:
    """A compiler that is a few lines of Python; `out` is where its output belongs."""
    script = folder / "compiler.py"
    out = "import sys, pathlib\nout = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
    script.write_text(out + code, encoding="utf-8")
    return f"{sys.executable} {script}"


@pytest.fixture(params=["missing", "failing"])
def broken(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    compiler = "no-such-compiler"
    if request.param == "failing":
        code = "print('x.cpp:1: error: odd', file=sys.stderr)\nout.write_text('half')\nexit(1)"
        compiler = fake_compiler(tmp_path, code)
    monkeypatch.setenv("CXX", compiler)
    return {
        "missing": "'no-such-compiler' cannot be run .*; .* CXX",
        "failing": "error: odd.* CXX",
    }[request.param]


def test_an_error_says_what_the_compiler_said_and_leaves_nothing(
    broken: str, tmp_path: Path
) -> None:
    with pytest.raises(CompilerError, match=broken):
        build_kernels(tmp_path / "kernels")
    assert list((tmp_path / "kernels").iterdir()) == []


@pytest.fixture
def unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been loaded yet, in an empty home."""
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_load", build._load.__wrapped__)


@pytest.mark.usefixtures("unloaded")
def test_the_engine_runs_without(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_nothing(function: Any, **options: Any) -> Any:
        compiled.append(options["backend"])
        return function

    monkeypatch.setattr("torch.compile", compile_nothing)
    prompt = random_ids(9)[0].tolist()
    with pytest.warns(UserWarning, match=f"{broken}.*; until then torch's own products"):
        engine = Engine(tiny_model("llama"), 16, compile=True)
    text = list(engine.submit(prompt, max_new_tokens=20))
    # The rest of a step is compiled nevertheless, by whatever inductor uses.
    assert compiled == ["inductor"]
    expected = Engine(tiny_model("llama"), 16).submit(prompt, max_new_tokens=20)
    assert text == list(expected)


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, "out.write_text('whole')"))
    library = build_kernels(tmp_path / "kernels")
    assert library.read_text() == "whole"
    library.write_text("made before")
    assert build_kernels(tmp_path / "kernels") == library
    assert library.read_text() == "made before"
    # Another compiler may make another library.
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("CXX", fake_compiler(other, "out.write_text('whole')"))
    assert build_kernels(tmp_path / "kernels") != library
    assert {path.suffix for path in (tmp_path / "kernels").iterdir()} == {".so"}


@pytest.mark.usefixtures("unloaded")
def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, "out.write_text('no library')"))
    with pytest.raises(CompilerError, match=r"/\w+\.so could not be loaded .*too short.*try again"):
        build.load_kernels()
    assert list((tmp_path / "kernels").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [('"', r"CXX='\"' is no command"), ("/", r"'/' cannot be run \(Permission denied\)")],
)
def test_a_compiler_that_is_none(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(CompilerError, match=said):
        build_kernels(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompilerError, match=r"cannot be used .*; set LACACHE_HOME"):
        build_kernels(tmp_path / "file" / "kernels")


def test_a_folder_that_cannot_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(CompilerError, match=r"cannot be used .*Permission denied.*LACACHE_HOME"):
        build_kernels(tmp_path)

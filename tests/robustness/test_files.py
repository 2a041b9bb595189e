"""Files that are empty, binary, endless or something else, given to every option that reads one."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.robustness.refusals import assert_refused

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
OTHERS = {
    "empty": b"",
    "png": PNG,
    "latin1": b"caf\xe9",
    "nul": b"a\0b",
    "device": "/dev/zero",
    "folder": None,
    "missing": None,
}
DOCUMENTS = OTHERS | {"blank": b" \n\n"}
DAMAGED = OTHERS | {"cut": b'{"name":', "list": b"[1, 2]", "deep": b"[" * 100_000}
POLICIES = DAMAGED | {
    "digits": b"streaming:sinks=%s" % (b"9" * 5000),
    "no value": b"ladder:span=",
    "unknown": b"nope:span=3",
}
TEXT_COMMANDS = [
    "generate -m MODEL --file",
    "demo -m MODEL --text",
    "calibrate -m MODEL --text",
    "tune -m MODEL --budget 200 --text",
]
POLICY_COMMANDS = [
    "generate hi -m MODEL --policy",
    "chat -m MODEL --policy",
    "serve -m MODEL --policy",
    "inspect --layers 8 --seen 9 --policy",
]
RECORD_COMMANDS = ["report", "eval --dry-run --out", "tune -m MODEL --text t --budget 9 --out"]
MODEL_COMMANDS = ["generate hi -m", "chat -m", "serve -m", "demo -m", "calibrate -m", "eval -m"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "t").write_text("a text")
    return tmp_path


def given(place: Path, kind: str, content: bytes | str | None) -> str:
    """The name of such a file."""
    if isinstance(content, str):
        return content
    path = place / "given"
    if kind == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    return str(path)


def run_with(run: Run, command: str, tiny: Path, name: str) -> object:
    return run(*command.replace("MODEL", str(tiny)).split(), name)


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("command", TEXT_COMMANDS)
def test_documents(run: Run, tiny: Path, place: Path, command: str, kind: str) -> None:
    pytest.importorskip("matplotlib")
    name = given(place, kind, DOCUMENTS[kind])
    assert_refused(run_with(run, command, tiny, name), name)


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("command", POLICY_COMMANDS)
def test_policies(run: Run, tiny: Path, place: Path, command: str, kind: str) -> None:
    name = given(place, kind, POLICIES[kind])
    assert_refused(run_with(run, command, tiny, f"@{name}"), "; ")


@pytest.mark.parametrize("kind", ["png", "latin1", "nul", "device", "folder", "deep", "list"])
@pytest.mark.parametrize("command", RECORD_COMMANDS)
def test_records(run: Run, tiny: Path, place: Path, command: str, kind: str) -> None:
    content = DAMAGED[kind]
    # Without a line feed, a last line counts as cut off.
    name = given(place, kind, content + b"\n" if isinstance(content, bytes) else content)
    before = Path(name).read_bytes() if Path(name).is_file() else None
    assert_refused(run_with(run, command, tiny, name), name)
    assert before is None or Path(name).read_bytes() == before


@pytest.mark.parametrize("kind", ["png", "device", "folder", "missing"])
@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_models(run: Run, place: Path, command: str, kind: str) -> None:
    name = given(place, kind, OTHERS[kind])
    assert_refused(run(*command.split(), name), name)


def test_pipes_are_read_once(run: Run, tiny: Path, place: Path) -> None:
    """`--policy @<(...)` of a shell passes a pipe."""
    pipe = place / "pipe"
    os.mkfifo(pipe)
    filler = threading.Thread(target=pipe.write_text, args=("streaming:sinks=2",))
    filler.start()
    result = run("generate", "hi", "-m", tiny, "-n", 3, "--policy", f"@{pipe}")
    filler.join()
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "command",
    [
        "inspect --layers 8 --seen 9 -b 32 --plot OUT/x.png",
        "demo -m MODEL --tokens 300 --budget 80 --out OUT",
        "eval -m MODEL --tasks ppl --policy full --lengths 64 --out OUT/e.jsonl",
        "report RECORDS --out OUT",
        "calibrate -m MODEL --out OUT/p.json",
        "calibrate -m MODEL --plot OUT/x.png",
        "tune -m MODEL --text t --budget 9 --out OUT/t.jsonl",
        "tune -m MODEL --text t --budget 9 --save-policy OUT/p.json",
        "tune -m MODEL --text t --budget 9 --plot OUT/x.png",
        "serve -m MODEL --port 0 --folder OUT",
    ],
)
@pytest.mark.parametrize("out", ["file", "/proc/none"])
def test_places_that_cannot_be_written(
    run: Run, tiny: Path, place: Path, command: str, out: str
) -> None:
    """As root, permissions do not hold; what is no folder, and /proc, cannot be written by any."""
    pytest.importorskip("matplotlib")
    from tests.evals.report.made_up import eval_record, write_lines

    write_lines(place / "records.jsonl", [eval_record("ladder"), eval_record("streaming")])
    (place / "file").write_text("in the way")
    words = command.replace("OUT", out).replace("RECORDS", "records.jsonl")
    assert_refused(run(*words.replace("MODEL", str(tiny)).split()), "cannot ", out)
    assert (place / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    "command",
    [
        "calibrate -m MODEL --out DIR",
        "calibrate -m MODEL --plot DIR.png",
        "tune -m MODEL --text t --budget 9 --save-policy DIR",
        "tune -m MODEL --text t --budget 9 --plot DIR.png",
    ],
)
def test_an_existing_folder_is_refused_before_the_work(
    run: Run, tiny: Path, place: Path, command: str
) -> None:
    pytest.importorskip("matplotlib")
    (place / "DIR").mkdir()
    (place / "DIR.png").mkdir()
    assert_refused(run(*command.replace("MODEL", str(tiny)).split()), "it is a folder")


@pytest.mark.parametrize("command", ["demo --text", "calibrate --text"])
def test_an_empty_name_is_not_the_default(run: Run, tiny: Path, command: str) -> None:
    pytest.importorskip("matplotlib")
    assert_refused(run(*command.split(), "", "-m", tiny), "is a directory")


@pytest.mark.parametrize("kind", ["deep", "png", "cut"])
def test_damaged_profiles(run: Run, tiny: Path, place: Path, kind: str) -> None:
    from lacache.models.fingerprint import fingerprint
    from tests.engine.tiny import tiny_llama

    content = DAMAGED[kind]
    assert isinstance(content, bytes)
    name = fingerprint(tiny_llama())
    (place / "home" / "profiles").mkdir(parents=True)
    (place / "home" / "profiles" / f"{name}.json").write_bytes(content)
    assert_refused(run("generate", "hi", "-m", tiny), f"{name}.json", "calibrate again")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["empty", "png", "deep", "cut"])
def test_damaged_models(run: Run, tiny: Path, place: Path, file: str, kind: str) -> None:
    content = DAMAGED[kind]
    assert isinstance(content, bytes)
    shutil.copytree(tiny, place / "model")
    (place / "model" / file).write_bytes(content)
    assert_refused(run("generate", "hi", "-m", place / "model"), str(place / "model"))


def test_a_very_long_prompt_is_prefilled(run: Run, tiny: Path, place: Path) -> None:
    (place / "long.txt").write_text("a" * 1000)
    result = run("generate", "-m", tiny, "-n", 1, "--budget", 64, "--file", place / "long.txt")
    assert result.exit_code == 0, result.output
    assert "1,000" in result.stderr


@pytest.mark.parametrize(
    ("command", "method"),
    [
        ("generate --file t -m MODEL", "read_bytes"),
        ("demo -m MODEL --text t", "exists"),
        ("generate hi -m MODEL", "is_dir"),
        ("generate hi -m MODEL", "open"),
        ("generate hi -m MODEL --policy @t", "is_char_device"),
    ],
)
def test_files_without_permission(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, command: str, method: str
) -> None:
    """Nothing is forbidden to root, under whom tests may run."""
    pytest.importorskip("matplotlib")
    ask = getattr(Path, method)

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name in ("t", "tiny", "model.safetensors"):
            raise PermissionError(13, "Permission denied", str(self))
        return ask(self, *arguments, **options)

    monkeypatch.setattr(Path, method, refuse)
    assert_refused(run(*command.replace("MODEL", str(tiny)).split()), "Permission denied")

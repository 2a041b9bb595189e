from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lacache.cli.app import app
from tests.engine.tiny import END, save_tiny

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    """Run the command line in this process: `run("inspect", "--seen", 3, input="...")`."""
    runner = CliRunner()

    def invoke(*arguments: object, input: str | bytes | None = None) -> Any:
        return runner.invoke(app, [str(argument) for argument in arguments], input=input)

    return invoke


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can chat, random, and never ends a text by itself."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_without_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "mute", chat_template=None)


@pytest.fixture(scope="session")
def tiny_that_ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its end token is in its generation configuration too."""
    return save_tiny(tmp_path_factory.mktemp("model") / "ending", eos_token_id=END)

"""The commands with the model that they find by themselves."""

import json

import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.slow

GREEDY = ("--temperature", "0")


def test_generate_answers(run: Run) -> None:
    question = "What is the capital of France?"
    result = run("generate", question, "--chat", "-n", 40, "--json", *GREEDY)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["model"] == "SmolLM2-135M-Instruct"
    assert record["finish_reason"] == "eos"
    assert "Paris" in record["text"]


def test_a_long_prompt_is_held_within_its_budget(run: Run) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 60
    arguments = ("--budget", "4MiB", "-n", 5, "--json", *GREEDY)
    result = run("generate", *arguments, input=prompt)
    assert result.exit_code == 0, result.stderr
    cache = json.loads(result.stdout)["cache"]
    assert cache["num_seen"] > 600
    assert 0.9 * 2**22 < cache["bytes"] <= 2**22


def test_chat_answers(run: Run) -> None:
    lines = "What is the capital of France?\n/state\n"
    result = run("chat", *GREEDY, "-n", 40, input=lines)
    assert result.exit_code == 0, result.stderr
    assert "Paris" in result.stdout
    assert "tokens seen" in result.stdout

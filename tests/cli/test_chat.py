import signal
import subprocess
from pathlib import Path

import pytest

from lacache import LaCache
from lacache.engine.cache_stream import CacheGenerator
from lacache.engine.conversation import ChatTemplate, Conversation
from lacache.engine.sampling import Sampling
from tests.cli.conftest import Run
from tests.cli.test_generate import MAIN
from tests.engine.tiny import tiny_llama, tiny_tokenizer

OPTIONS = ("--temperature", "0", "--dtype", "float32", "-n", "12", "--budget", "128")


def expected(
    messages: list[str], *, system: str | None = None, sampling: Sampling | None = None
) -> str:
    """What the library replies."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    template = ChatTemplate(tokenizer, system)
    cache = LaCache(model, 128, f"balanced:sinks={template.num_pinned}")
    conversation = Conversation(lambda: CacheGenerator(model, cache, sampling), template)
    replies = [list(conversation.reply(message, max_new_tokens=12)) for message in messages]
    texts = [tokenizer.decode(reply, skip_special_tokens=True) for reply in replies]
    return "".join(f"{text}\n" for text in texts)


def test_replies_are_those_of_the_library(run: Run, tiny: Path) -> None:
    messages = [f"the message {number} é" for number in range(6)]
    result = run("chat", "--model", tiny, *OPTIONS, input="\n".join(messages))
    assert result.exit_code == 0
    assert result.stdout == expected(messages)
    assert result.stderr == ""


def test_a_system_prompt_is_used(run: Run, tiny: Path) -> None:
    result = run("chat", "--model", tiny, "--system", "Be brief.", *OPTIONS, input="the cat")
    assert result.stdout == expected(["the cat"], system="Be brief.")
    assert result.stdout != expected(["the cat"])


def test_empty_lines_are_skipped(run: Run, tiny: Path) -> None:
    result = run("chat", "--model", tiny, *OPTIONS, input="\n  \nthe cat\n\n")
    assert result.stdout == expected(["the cat"])


def test_state_shows_the_cache(run: Run, tiny: Path) -> None:
    lines = [f"the message {number}" for number in range(6)]
    result = run("chat", "--model", tiny, *OPTIONS, input="\n".join([*lines, "/state", "/quit"]))
    assert result.exit_code == 0
    table = result.stdout.removeprefix(expected(lines))
    pinned = ChatTemplate(tiny_tokenizer()).num_pinned
    rows = dict(
        [cell.strip() for cell in line.strip("│┃").split("│")]
        for line in table.splitlines()
        if "│" in line
    )
    assert rows["of these never evicted"] == str(pinned)
    held, _, capacity = rows["held by each layer"].partition(" of ")
    assert capacity == "128"
    assert int(held) <= 128 < int(rows["tokens seen"])
    assert int(rows["compactions"]) > 0


def test_groups_pin_the_system_prompt_too(run: Run, tiny: Path) -> None:
    policy = "groups:0-4@140@streaming:sinks=1:evict_batch=4"
    greedy = ("--temperature", "0", "--dtype", "float32", "-n", "12")
    result = run("chat", "--model", tiny, "--policy", policy, *greedy, input="the cat\n/state")
    assert result.exit_code == 0, result.stderr
    assert "of 140" in result.stdout
    pinned = ChatTemplate(tiny_tokenizer()).num_pinned
    assert "of these never evicted" in result.stdout
    result = run(*("chat", "--model", tiny, "--policy", f"groups:0-4@{pinned}@streaming"))
    assert result.exit_code == 2
    assert f"sinks {pinned}" in result.stderr


def test_reset_clears_the_conversation(run: Run, tiny: Path) -> None:
    result = run("chat", "--model", tiny, *OPTIONS, input="the cat\n/reset\nthe cat\n")
    once = expected(["the cat"])
    assert result.stdout == f"{once}Cleared; the system prompt stays.\n{once}"


def test_a_stop_string_ends_the_reply_and_keeps_the_conversation(run: Run, tiny: Path) -> None:
    messages = ["the cat", "the cat"]
    text = expected(messages[:1])
    stop = text[5:8]
    result = run("chat", "--model", tiny, *OPTIONS, "--stop", stop, input="\n".join(messages))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(text[: text.index(stop)] + "\n")
    assert stop not in result.stdout
    assert result.stdout != text[: text.index(stop)] + "\n"


def test_a_repetition_penalty_reaches_the_replies(run: Run, tiny: Path) -> None:
    result = run(*("chat", "--model", tiny, *OPTIONS, "--repetition-penalty", "2"), input="the cat")
    sampling = Sampling(repetition_penalty=2.0)
    assert result.stdout == expected(["the cat"], sampling=sampling)
    assert result.stdout != expected(["the cat"])


def test_help_and_unknown_commands(run: Run, tiny: Path) -> None:
    result = run("chat", "--model", tiny, *OPTIONS, input="/help\n/bogus\n")
    assert result.exit_code == 0
    assert result.stdout.count("/state  what the cache holds") == 2
    assert "There is no command /bogus" in result.stdout


@pytest.mark.parametrize("command", ["/quit", "/exit"])
def test_quit_leaves_at_once(run: Run, tiny: Path, command: str) -> None:
    result = run("chat", "--model", tiny, *OPTIONS, input=f"{command}\nthe cat\n")
    assert (result.exit_code, result.stdout) == (0, "")


@pytest.mark.slow
def test_ctrl_c_stops_the_reply_and_keeps_the_conversation(tiny: Path) -> None:
    process = subprocess.Popen(
        [*MAIN, "chat", "--model", tiny, "--temperature", "0", "--budget", "96"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"the cat\n")
    process.stdin.flush()
    assert process.stdout.read(300)  # a reply that never ends by itself
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(b"/state\n", timeout=60)
    assert process.returncode == 0, errors
    assert b"tokens seen" in output
    assert errors == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--budget 0.5", "budget=0.5 is a share of a prompt"),
        ("--budget 0", "budget=0 must be at least 1 token"),
        ("--budget 30", "budget=30 must be at least"),
        ("--max-new-tokens 0", "max_new_tokens=0 must be -1 (up to the model) or at least 1"),
        ("--max-new-tokens -2", "max_new_tokens=-2 must be -1"),
        ("--repetition-penalty -1", "repetition_penalty=-1.0 must be from 0.01 to 100"),
        ("--stop=", "stop='' must be a string of at least 1 character"),
        ("--policy ladder:span=2:overlap=2", "overlap=2 must be below span=2"),
    ],
)
def test_bad_options_end_in_one_line(run: Run, tiny: Path, arguments: str, message: str) -> None:
    result = run("chat", "--model", tiny, *arguments.split(), input="the cat")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_no_chat_template_ends_in_one_line(run: Run, tiny_without_chat: Path) -> None:
    result = run("chat", "--model", tiny_without_chat, input="the cat")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the model has no chat template")


@pytest.mark.parametrize("data", [b"caf\xe9\n", b"the \0 cat\n"])
def test_input_that_is_not_utf8_ends_in_one_line(run: Run, tiny: Path, data: bytes) -> None:
    result = run("chat", "--model", tiny, *OPTIONS, input=data)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "UTF-8" in result.stderr

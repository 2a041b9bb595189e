"""The command itself: started, used by other programs, asked to end, and killed."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from lacache import Engine
from tests.engine.tiny import save_tiny, tiny_llama, tiny_tokenizer
from tests.server.serving import NAME, listening, service

pytestmark = pytest.mark.slow

BUDGET = 48
SERVE = [sys.executable, "-c", "from lacache.cli import main; main()", "serve"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


class Running:
    """The server in a process of its own."""

    def __init__(self, model: Path, *options: str) -> None:
        given = ["--model", model, "--port", 0, "--budget", BUDGET, "--dtype", "float32"]
        self.process = subprocess.Popen(
            [*SERVE, *map(str, given), *options], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.errors = ""
        while (found := re.search(r"listening at (\S+)/v1", self.errors)) is None:
            line = self.process.stderr.readline()
            assert line, f"it ended with {self.process.wait()}: {self.errors}"
            self.errors += line
        self.address = found[1]
        self.http = httpx.Client(base_url=f"{self.address}/v1", timeout=30)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *args: object) -> None:
        self.http.close()
        self.process.kill()
        self.process.communicate()


def written(turns: list[str], num_new: int) -> list[str]:
    """What one session of the engine says in turn."""
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_llama(), BUDGET)
    said = []
    with engine.open() as session:
        for turn in turns:
            ids = tokenizer(turn, add_special_tokens=False).input_ids
            new = list(session.generate(ids, max_new_tokens=num_new))
            said.append(tokenizer.decode(new, skip_special_tokens=True))
    return said


def ask(http: httpx.Client, name: str, turn: str, num_new: int = 6) -> str:
    body = {"session": name, "prompt": turn, "max_tokens": num_new, "temperature": 0}
    answer = http.post("/completions", json=body)
    assert answer.is_success, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_sigterm_ends_the_server_and_saves_sessions(model: Path, tmp_path: Path) -> None:
    body = {"session": "a", "prompt": "the sea", "max_tokens": 100_000, "temperature": 0}
    with Running(model, "--folder", str(tmp_path)) as one:
        assert one.http.post("/sessions", json={"name": "a"}).is_success
        with one.http.stream("POST", "/completions", json=body | {"stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            one.process.send_signal(signal.SIGTERM)
            assert "the server is shutting down" in "".join(lines)
        _, errors = one.process.communicate(timeout=30)
        assert one.process.returncode == 0
        assert "Traceback" not in errors
    with Running(model, "--folder", str(tmp_path)) as one:
        assert one.http.get("/sessions/a").json()["num_seen"] > len("the sea") - 2


def test_sigterm_right_after_the_start_ends_the_server_cleanly(model: Path) -> None:
    with Running(model) as one:
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(timeout=30) == 0


def test_sessions_survive_kill_at_any_moment(model: Path, tmp_path: Path) -> None:
    """Each turn whose end was told is there, and at most one more that was not."""
    names = ["a", "b", "c"]
    turns: dict[str, list[str]] = {name: [] for name in names}
    told: dict[str, list[str]] = {name: [] for name in names}
    begun = dict.fromkeys(names, 0)
    """How many turns there were when the server was started."""
    chosen = random.Random(1)

    def go_on(one: Running, name: str) -> None:
        with suppress(httpx.HTTPError), httpx.Client(base_url=one.http.base_url) as http:
            while True:
                turns[name].append(f"turn {len(turns[name])}, ")
                told[name].append(ask(http, name, turns[name][-1]))

    for killing in range(3):
        with Running(model, "--folder", str(tmp_path)) as one:
            for name in names:
                if killing == 0:
                    assert one.http.post("/sessions", json={"name": name}).is_success
                    continue
                num_seen = one.http.get(f"/sessions/{name}").json()["num_seen"]
                tokenizer = tiny_tokenizer()
                lengths = [len(tokenizer(turn).input_ids) + 6 for turn in turns[name]]
                # The newest token of a text is not read before the next turn.
                ends = {sum(lengths[:n]) - (n > 0): n for n in range(len(lengths) + 1)}
                begun[name] = ends[num_seen]
                assert begun[name] in (len(told[name]), len(told[name]) + 1)
                # What was saved and not told was said all the same.
                del turns[name][begun[name] :]
                said = written(turns[name], 6)
                assert said[: len(told[name])] == told[name]
                told[name] = said
            writers = [threading.Thread(target=go_on, args=(one, name)) for name in names]
            for writer in writers:
                writer.start()
            until = time.monotonic() + 60
            while any(len(told[name]) <= begun[name] for name in names):
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(chosen.uniform(0, 0.5))
            one.process.kill()
            for writer in writers:
                writer.join()


CHATS = [{"role": "user", "content": "the sea"}]


def test_curl() -> None:
    with service() as one, listening(one) as address:
        body = json.dumps({"messages": CHATS, "max_tokens": 5, "temperature": 0})
        command = ["curl", "-sS", f"{address}/v1/chat/completions", "-d", body]
        found = subprocess.run(
            [*command, "-H", "Content-Type: application/json"], capture_output=True, check=True
        )
        told = json.loads(found.stdout)
        assert told["usage"]["completion_tokens"] == 5


def test_llm(tmp_path: Path) -> None:
    """https://llm.datasette.io"""
    with service() as one, listening(one) as address:
        entry = {"model_id": "here", "model_name": NAME, "api_base": f"{address}/v1"}
        # JSON is YAML too.
        (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))
        settings = {
            "LLM_USER_PATH": str(tmp_path),
            "OPENAI_API_KEY": "none",
            "LLM_LOAD_PLUGINS": "",
        }
        asked = ["-m", "here", "the sea", "-o", "max_tokens", "5", "-o", "temperature", "0"]
        found = subprocess.run(
            [sys.executable, "-m", "llm", "--no-log", *asked],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | settings,
        )
        assert found.returncode == 0, found.stderr
        body = {"messages": CHATS, "max_tokens": 5, "temperature": 0}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body).json()
        assert found.stdout.strip() == answer["choices"][0]["message"]["content"].strip()


def test_a_port_in_use_is_refused_at_once(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*SERVE, "--model", str(model), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in result.stderr
    assert "Traceback" not in result.stderr

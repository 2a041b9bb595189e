"""Sessions over HTTP."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lacache.engine import snapshot_file
from lacache.engine.conversation import ChatTemplate
from lacache.errors import ConfigError, InputError
from lacache.server.service import Service
from lacache.server.settings import StorageSettings
from tests.engine.tiny import END, tiny_tokenizer
from tests.server.serving import NAME, listening, new_engine, service

GREEDY = {"temperature": 0, "max_tokens": 9}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Service, httpx.Client]]:
    with (
        service(storage=StorageSettings(folder=tmp_path)) as one,
        listening(one) as address,
        httpx.Client(base_url=f"{address}/v1", timeout=20) as http,
    ):
        yield one, http


@pytest.fixture
def http(running: tuple[Service, httpx.Client]) -> httpx.Client:
    return running[1]


def good(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()


def text_of(answer: httpx.Response) -> str:
    text: str = good(answer)["choices"][0]["text"]
    return text


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    message: str = answer.json()["error"]["message"]
    return message


def on(http: httpx.Client, name: str, prompt: str, **settings: Any) -> str:
    body = {"session": name, "prompt": prompt} | GREEDY | settings
    return text_of(http.post("/completions", json=body))


def alone(turns: list[str], num_new: int = 9) -> list[str]:
    """What one session of the engine says in turn."""
    tokenizer = tiny_tokenizer()
    said = []
    with new_engine().open() as session:
        for turn in turns:
            ids = tokenizer(turn, add_special_tokens=False).input_ids
            tokens = list(session.generate(ids, max_new_tokens=num_new, eos_token_ids={END}))
            if tokens[-1] == END:
                session.drop_last()
            said.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return said


def test_a_session_from_creation_to_deletion(http: httpx.Client) -> None:
    assert good(http.get("/sessions"))["data"] == []
    made = good(http.post("/sessions", json={"name": "a"}))
    assert (made["id"], made["object"], made["num_seen"]) == ("a", "session", 0)
    turns = ["the sea " * 9, "and the dog", " Ada"]
    wanted = alone(turns)
    assert [on(http, "a", turn) for turn in turns[:2]] == wanted[:2]
    good(http.post("/sessions/a/fork", json={"name": "b"}))
    assert on(http, "b", turns[2]) == on(http, "a", turns[2]) == wanted[2]
    told = good(http.get("/sessions"))["data"]
    assert [each["id"] for each in told] == ["a", "b"]
    assert told[0] == good(http.get("/sessions/a"))
    assert told[0]["num_seen"] == told[1]["num_seen"] > 80
    file = http.get("/sessions/a/file")
    assert file.headers["content-type"] == "application/octet-stream"
    assert good(http.delete("/sessions/a")) == {"id": "a", "object": "session", "deleted": True}
    assert "no session 'a'" in refused(http.get("/sessions/a"), 404)
    assert (
        good(http.put("/sessions/c/file", content=file.content))["num_seen"]
        == (told[0]["num_seen"])
    )
    assert on(http, "c", "more") == on(http, "b", "more")


def test_a_chat_sends_only_new_messages(http: httpx.Client) -> None:
    template = ChatTemplate(tiny_tokenizer(), "Be brief.")
    wanted = []
    with new_engine().open() as session:
        for tokens in (template.first("the sea"), template.following("the dog")):
            new = list(session.generate(tokens, max_new_tokens=9, eos_token_ids={END}))
            if new[-1] == END:
                session.drop_last()
            wanted.append(tiny_tokenizer().decode(new, skip_special_tokens=True))
    good(http.post("/sessions", json={"name": "a"}))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the sea"}]
    said = []
    for new in (messages, [{"role": "user", "content": "the dog"}]):
        body = {"session": "a", "messages": new} | GREEDY
        answer = good(http.post("/chat/completions", json=body))
        said.append(answer["choices"][0]["message"]["content"])
    assert said == wanted
    body = {"session": "a", "messages": messages}
    assert "send only the new user message" in refused(
        http.post("/chat/completions", json=body), 400
    )


def test_a_stream_of_a_session_is_the_same_text(http: httpx.Client) -> None:
    for name in "ab":
        good(http.post("/sessions", json={"name": name}))
    body = {"session": "a", "prompt": "the sea", "stream": True} | GREEDY
    lines = http.post("/completions", json=body).text.splitlines()
    assert lines[-2] == "data: [DONE]"
    assert on(http, "b", "the sea") in "".join(
        json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")
    )
    assert on(http, "a", "x") == on(http, "b", "x")


def test_sessions_survive_a_restart(tmp_path: Path) -> None:
    turns = ["the sea " * 9, "and the dog"]
    said = []
    for turn in turns:
        with (
            service(storage=StorageSettings(folder=tmp_path)) as one,
            listening(one) as address,
            httpx.Client(base_url=f"{address}/v1") as http,
        ):
            if not said:
                good(http.post("/sessions", json={"name": "a"}))
            said.append(on(http, "a", turn))
    assert said == alone(turns)


def test_invalid_session_requests_are_refused(http: httpx.Client) -> None:
    def ask(**body: Any) -> httpx.Response:
        return http.post("/completions", json={"prompt": "a"} | GREEDY | body)

    assert "no session 'a'" in refused(ask(session="a"), 404)
    assert "session's name" in refused(ask(session="../a"), 400)
    assert "n=2 must be 1 with a session" in refused(ask(session="a", n=2), 400)
    assert "session's name" in refused(http.post("/sessions", json={"name": "A B"}), 400)
    assert "name" in refused(http.post("/sessions", json={}), 400)
    assert "is not served" in refused(http.post("/sessions", json={"name": "a", "model": "x"}), 404)
    good(http.post("/sessions", json={"name": "a"}))
    assert "temperature=0.005 must be 0" in refused(ask(session="a", temperature=0.005), 400)
    assert "already" in refused(http.post("/sessions", json={"name": "a"}), 409)
    assert "prompt is empty" in refused(ask(session="a", prompt=""), 400)
    assert "not a safetensors" in refused(http.put("/sessions/b/file", content=b"\x80\x04."), 400)
    assert "larger than" in refused(http.put("/sessions/b/file", content=b"0" * 40_000_000), 413)
    assert [each["id"] for each in good(http.get("/sessions"))["data"]] == ["a"]
    assert on(http, "a", "a")


def test_sessions_need_a_folder() -> None:
    with service() as one, listening(one) as address:
        for path in ("sessions", "sessions/a"):
            answer = httpx.get(f"{address}/v1/{path}")
            assert "start it with --folder" in refused(answer, 404)


def test_concurrent_requests_of_a_session_return_409(tmp_path: Path) -> None:
    with (
        service(storage=StorageSettings(folder=tmp_path), is_endless=True) as one,
        listening(one) as address,
        httpx.Client(base_url=f"{address}/v1") as http,
    ):
        good(http.post("/sessions", json={"name": "a"}))
        body = {"session": "a", "prompt": "a", "max_tokens": 100_000, "stream": True}
        with http.stream("POST", "/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            other = httpx.post(f"{address}/v1/completions", json=body | {"stream": False})
            assert "uses the session 'a'" in refused(other, 409)


BEGUN = {"session": "a", "prompt": "the sea", "max_tokens": 100_000, "stream": True}
LEAST = len("the sea") - 2 + 4
"""Tokens: `the` is one, and some were written."""


@contextmanager
def begun(http: httpx.Client) -> Iterator[Iterator[str]]:
    """What is left of a stream of which some pieces were read."""
    with http.stream("POST", "/completions", json=BEGUN) as stream:
        lines = stream.iter_lines()
        for _ in range(9):
            next(lines)
        yield lines


def test_disconnecting_saves_the_session(tmp_path: Path) -> None:
    with (
        service(storage=StorageSettings(folder=tmp_path), is_endless=True) as one,
        listening(one) as address,
        httpx.Client(base_url=f"{address}/v1") as http,
    ):
        good(http.post("/sessions", json={"name": "a"}))
        with begun(http):
            pass
        body = BEGUN | {"stream": False, "max_tokens": 1, "prompt": "x"}
        until = time.monotonic() + 20
        while (answer := http.post("/completions", json=body)).status_code == 409:
            assert time.monotonic() < until
        good(answer)
        assert good(http.get("/sessions/a"))["num_seen"] > LEAST


def test_a_shutdown_saves_the_session(tmp_path: Path) -> None:
    storage = StorageSettings(folder=tmp_path)
    with (
        service(storage=storage, is_endless=True) as one,
        listening(one) as address,
        httpx.Client(base_url=f"{address}/v1") as http,
    ):
        good(http.post("/sessions", json={"name": "a"}))
        with begun(http) as lines:
            one.model(None).thread.close()
            assert "the server is shutting down" in list(lines)[-4]
    with service(storage=storage) as one:
        sessions = one.model(None).sessions
        assert sessions is not None
        num_seen = sessions.info("a").num_seen
        assert num_seen is not None
        assert num_seen > LEAST


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        service(storage=StorageSettings(folder=tmp_path)),
        pytest.raises(InputError, match="another server uses"),
        service(storage=StorageSettings(folder=tmp_path)),
    ):
        pass
    with (
        pytest.raises(InputError, match="cannot use the folder"),
        service(storage=StorageSettings(folder=tmp_path / "file")),
    ):
        pass


def test_each_budget_has_its_own_sessions(tmp_path: Path) -> None:
    engines = {NAME: new_engine(), f"{NAME}@48": new_engine(capacity=48)}
    with (
        service(storage=StorageSettings(folder=tmp_path), engines=engines) as one,
        listening(one) as address,
        httpx.Client(base_url=f"{address}/v1") as http,
    ):
        assert [each["id"] for each in good(http.get("/models"))["data"]] == list(engines)
        good(http.post("/sessions", json={"name": "a"}))
        good(http.post("/sessions", json={"name": "a", "model": f"{NAME}@48"}))
        on(http, "a", "the sea " * 9, model=f"{NAME}@48")
        assert good(http.get("/sessions/a"))["num_seen"] == 0
        query = {"model": f"{NAME}@48"}
        assert good(http.get("/sessions/a", params=query))["num_seen"] > 50
        file = http.get("/sessions/a/file", params=query).content
        assert "the file was saved with policy=" in refused(
            http.put("/sessions/b/file", content=file), 400
        )
        held = [
            good(httpx.get(f"{address}/inspect", params={"seen": "999"} | which))
            for which in ({}, query)
        ]
        assert [each["capacity"] for each in held] == [40, 48]
        for capacity, name in ((40, NAME), (48, f"{NAME}@48")):
            body = {"model": name, "prompt": "the cat and the dog " * 9} | GREEDY
            tokens = tiny_tokenizer()(body["prompt"]).input_ids
            stream = new_engine(capacity=capacity).submit(tokens, max_new_tokens=9)
            wanted = tiny_tokenizer().decode(list(stream), skip_special_tokens=True)
            assert text_of(http.post("/completions", json=body)) == wanted


def test_two_equal_engines_are_refused() -> None:
    engines = {NAME: new_engine(), f"{NAME}@40": new_engine()}
    with (
        pytest.raises(ConfigError, match="tiny@40 and tiny keep the same tokens"),
        service(engines=engines),
    ):
        pass


def test_a_request_that_cannot_be_saved_leaves_the_session_as_it_was(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(http.post("/sessions", json={"name": "a"}))
    said = on(http, "a", "the sea")
    before = good(http.get("/sessions/a"))["num_seen"]
    with monkeypatch.context() as patched:

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(snapshot_file.os, "fsync", full)
        body = {"session": "a", "prompt": "and the dog"} | GREEDY
        message = refused(http.post("/completions", json=body), 507)
        assert message.startswith("cannot write the session 'a': No space left on device")
    assert good(http.get("/sessions/a"))["num_seen"] == before
    assert [said, on(http, "a", "and the dog")] == alone(["the sea", "and the dog"])

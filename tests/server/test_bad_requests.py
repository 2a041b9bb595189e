"""Bad requests of any kind get a reason and no more; the server goes on."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from starlette.testclient import TestClient

from lacache.server.app import make_app
from lacache.server.service import Service
from lacache.server.settings import StorageSettings
from tests.server.serving import listening, service

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
NO_NUMBER = st.none() | st.text(alphabet="abc", max_size=3) | st.lists(st.integers(), max_size=2)
NO_TEXT = st.integers() | st.floats(allow_nan=False) | st.lists(st.integers(), max_size=2)
NO_FLAG = st.text(alphabet="abc", min_size=1) | st.lists(st.booleans()) | st.integers(2)
NO_NAME = st.sampled_from(["", ".", "..", "../../etc/passwd", "a/b", "A", "a b", "x" * 65, "ü"])


def outside(least: float, most: float) -> SearchStrategy[Any]:
    low = st.floats(max_value=least, exclude_max=True, allow_infinity=False)
    high = st.floats(min_value=most, exclude_min=True, allow_infinity=False)
    # Zero with a sign is zero.
    low = low.filter(lambda value: value != 0)
    return low | high | NO_NUMBER.filter(lambda value: value is not None)


BAD = {
    "temperature": outside(0, 100),
    "top_p": outside(0, 1),
    "min_p": outside(0, 1),
    "repetition_penalty": outside(0.01, 100),
    "top_k": st.integers(max_value=-1) | st.floats(0.1, 0.9) | NO_NUMBER,
    "seed": st.integers(max_value=-1) | st.integers(2**63) | st.floats(0.1, 0.9),
    "n": st.integers(max_value=0) | st.integers(129) | NO_NUMBER,
    "stop": st.just("") | st.lists(st.just(""), min_size=1) | st.just("x" * 257) | st.integers(),
    "stream": NO_FLAG,
    "inspect": NO_FLAG,
    "session": NO_NAME | st.just("nobody") | st.integers(),
    "frequency_penalty": st.floats(0.1, 2),
    "presence_penalty": st.floats(0.1, 2),
    "logit_bias": st.dictionaries(st.text(max_size=3), st.floats(-1, 1), min_size=1),
    "max_tokens": st.integers(max_value=0) | st.floats(0.1, 0.9) | st.text("abc", min_size=1),
    "model": st.text(min_size=1, max_size=9).filter(lambda name: name != "tiny"),
}
BAD_COMPLETION = BAD | {
    "prompt": st.sampled_from(["", "half \ud83d"])
    | st.integers()
    | st.none()
    | st.lists(st.integers(10**4), min_size=1),
    "logprobs": st.integers(max_value=-1) | st.integers(21),
    "echo": st.just(True),
    "suffix": st.text(min_size=1),
    "best_of": st.integers(2),
}
BAD_CHAT = BAD | {
    "messages": st.just([])
    | NO_TEXT
    | st.lists(JSON, min_size=1, max_size=2)
    | st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["tool", "x", ""]), "content": st.text()}),
        min_size=1,
    )
    | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": NO_TEXT}), min_size=1),
    "logprobs": NO_FLAG,
    "top_logprobs": st.integers(0, 20) | st.integers(21) | st.integers(max_value=-1),
    "tools": st.lists(JSON, min_size=1),
    "max_completion_tokens": st.integers(max_value=0),
}
GOOD_COMPLETION = {"prompt": "the sea", "max_tokens": 1}
CHAT = "/v1/chat/completions"
GOOD_CHAT = {"messages": [{"role": "user", "content": "the sea"}], "max_tokens": 1}

Request = tuple[str, str, bytes]


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def one_wrong_field(draw: Any) -> Request:
    path, good, bad = draw(
        st.sampled_from(
            [
                ("/v1/completions", GOOD_COMPLETION, BAD_COMPLETION),
                ("/v1/chat/completions", GOOD_CHAT, BAD_CHAT),
            ]
        )
    )
    field = draw(st.sampled_from(sorted(bad)))
    return "POST", path, encoded(good | {field: draw(bad[field])})


def no_request(value: Any) -> bool:
    return not (isinstance(value, dict) and {"prompt", "messages", "name"} & value.keys())


POSTS = st.sampled_from(
    ["/v1/completions", "/v1/chat/completions", "/v1/sessions", "/v1/sessions/a/fork"]
)
BODIES = st.binary(max_size=60) | JSON.filter(no_request).map(encoded)
ANY_BODY = st.tuples(st.just("POST"), POSTS, BODIES)
NO_ROUTE = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    st.text("abc/.%~", max_size=12)
    # Clients go up by themselves, and then it is another route.
    .filter(lambda path: ".." not in path)
    .map(lambda path: f"/v2/{path}")
    | st.sampled_from(["/v1/completions/x", "/page/../app.py", "/page/%2e%2e/app.py", "/page/"]),
    BODIES,
)
NO_METHOD = st.tuples(
    st.sampled_from(["DELETE", "PATCH", "PUT"]),
    st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/"]),
    BODIES,
)
NO_SESSION = st.tuples(
    st.sampled_from(["GET", "DELETE"]),
    st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#/\\"), min_size=1
    )
    .filter(lambda name: name not in (".", ".."))
    .map(lambda name: f"/v1/sessions/{name.replace('%', '%25')}"),
    st.just(b""),
)
NO_FILE = st.tuples(st.just("PUT"), st.just("/v1/sessions/a/file"), st.binary(max_size=200))
NO_NUMBER_SEEN = st.tuples(
    st.just("GET"),
    (st.text("abc.-", min_size=1) | st.integers(max_value=-1) | st.integers(10**13)).map(
        lambda seen: f"/inspect?seen={seen}"
    ),
    st.just(b""),
)
REQUESTS = (
    one_wrong_field()
    | one_wrong_field()
    | ANY_BODY
    | NO_ROUTE
    | NO_METHOD
    | NO_SESSION
    | NO_FILE
    | NO_NUMBER_SEEN
)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("state")
    with (
        service(storage=StorageSettings(folder=folder), waiting=4) as one,
        listening(one) as address,
        httpx.Client(base_url=address, timeout=20) as http,
    ):
        yield http
        check_well(one, http)


def check_well(one: Service, http: httpx.Client) -> None:
    """Nothing is left of all that."""
    answer = http.post("/v1/completions", json=GOOD_COMPLETION)
    assert answer.status_code == 200
    assert one.model(None).thread.num_open == 0
    assert http.get("/v1/sessions").json()["data"] == []


def check_refused(http: httpx.Client, request: Request) -> None:
    method, path, body = request
    headers = {"content-type": "application/json"}
    answer = http.request(method, path, content=body, headers=headers)
    assert 400 <= answer.status_code < 500, (request, answer.text)
    error = answer.json()["error"]
    assert error["message"].strip()
    assert error["type"].endswith("_error")
    assert "Traceback" not in answer.text


@given(REQUESTS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bad_requests_are_refused(http: httpx.Client, request: Request) -> None:
    check_refused(http, request)


@given(one_wrong_field())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_wrong_field_is_refused_with_rule_and_remedy(
    http: httpx.Client, request: Request
) -> None:
    method, path, body = request
    headers = {"content-type": "application/json"}
    answer = http.request(method, path, content=body, headers=headers)
    rule, _, remedy = answer.json()["error"]["message"].partition("; ")
    assert rule
    assert remedy
    assert "nput should" not in rule


@pytest.mark.slow
@given(REQUESTS)
@settings(
    max_examples=2_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_two_thousand_bad_requests_are_refused(http: httpx.Client, request: Request) -> None:
    check_refused(http, request)


BROKEN = [
    b"\x00\xff\x80" * 50,
    b"GET / HTTP/x.9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /" + b"a" * 100_000,
]


@pytest.mark.parametrize("sent", BROKEN)
def test_invalid_http_is_refused(http: httpx.Client, sent: bytes) -> None:
    """A connection that says nothing sensible is refused or dropped, and no other notices."""
    with socket.create_connection((http.base_url.host, http.base_url.port)) as connection:
        connection.settimeout(20)
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100)
        except ConnectionError:
            answer = b""
    assert answer[:12] in (b"", b"HTTP/1.1 400")
    assert http.get("/health").status_code == 200


LARGE = 300_000


@pytest.mark.parametrize(
    "body",
    [
        GOOD_COMPLETION | {"prompt": [-1] * LARGE},
        GOOD_COMPLETION | {"prompt": ["x"] * LARGE},
        GOOD_COMPLETION | {"stop": [""] * LARGE},
        GOOD_COMPLETION | {"logit_bias": dict.fromkeys(map(str, range(LARGE)), "x")},
        GOOD_CHAT | {"messages": [{}] * LARGE},
    ],
)
def test_large_bad_requests_get_short_errors(http: httpx.Client, body: dict[str, Any]) -> None:
    answer = http.post("/v1/completions" if "prompt" in body else CHAT, json=body)
    assert answer.status_code == 400
    assert len(answer.content) < 1_000


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_only_json_is_accepted(http: httpx.Client, kind: str | None) -> None:
    """A page of another site may send the others without asking."""
    headers = {} if kind is None else {"content-type": kind}
    for path, body in (("/v1/completions", GOOD_COMPLETION), ("/v1/sessions", {"name": "a"})):
        answer = http.post(path, content=encoded(body), headers=headers)
        assert answer.status_code == 400


def test_other_host_names_are_refused() -> None:
    with service() as one:
        app = make_app(one, hosts=("localhost", "127.0.0.1", "::1"))
        with TestClient(app) as http:
            for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
                assert http.get("/health", headers={"host": host}).status_code == 200
            for host in (
                "evil.example",
                "evil.example:8000",
                "localhost.evil",
                "",
                "[",
                "@",
                "a b",
            ):
                answer = http.get("/health", headers={"host": host})
                assert answer.status_code == 400
                message = answer.json()["error"]["message"]
                assert f"Host header {host!r} is not allowed; use 127.0.0.1 or" in message


def test_more_choices_than_the_queue_holds_are_refused() -> None:
    with service(max_sequences=2, waiting=3) as one, TestClient(make_app(one)) as http:
        answer = http.post("/v1/completions", json=GOOD_COMPLETION | {"n": 6})
        assert answer.status_code == 400
        assert "n=6 must be at most 5" in answer.json()["error"]["message"]
        assert http.post("/v1/completions", json=GOOD_COMPLETION | {"n": 5}).status_code == 200

"""The page shows what the cache holds, and its server tells that truly."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qs, urlencode, urlparse
from urllib.request import urlopen

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from lacache import Engine, Group, Groups, Ladder, Streaming
from lacache.engine.scheduler import Scheduler
from lacache.policies import ModelShape, Policy, bind_policy, kept_after
from lacache.policies.kept import KeptTokens
from tests.engine.tiny import tiny_llama
from tests.server.serving import CAPACITY, NAME, POLICY, listening, new_engine, service

LAYERS, KV_HEADS = 5, 2
GROUPS = Groups(
    (
        Group(Ladder(span=2, overlap=1, evict_batch=3), (0, 2, (3, 1), 4), 30),
        Group(Streaming(sinks=2, evict_batch=3), (1, (3, 0)), 21),
    )
)
PARTS = {
    "/": "text/html",
    "/page/index.html": "text/html",
    "/page/style.css": "text/css",
    "/page/icon.svg": "image/svg+xml",
} | {
    f"/page/{name}.js": "text/javascript"
    for name in (
        "api",
        "app",
        "cells",
        "conversation",
        "counters",
        "format",
        "ladder",
        "state",
        "tokens",
    )
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    grouped = Engine(tiny_llama(), None, GROUPS, max_sequences=1, chunk_size=16)
    engines = {NAME: new_engine(), "grouped": grouped}
    with service(engines=engines, is_endless=True) as one, listening(one) as address:
        yield address


@pytest.mark.parametrize(("path", "kind"), PARTS.items())
def test_every_file_of_the_page_is_served(address: str, path: str, kind: str) -> None:
    answer = httpx.get(address + path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == kind
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    # Nothing comes from elsewhere; the one address is a name of XML's.
    assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "",
        "__init__.py",
        "..",
        "../routes.py",
        "..%2froutes.py",
        "%2e%2e/routes.py",
        "%2e%2e%2froutes.py",
        "..%5croutes.py",
        "%2fetc%2fpasswd",
        "app.js%00",
        "APP.JS",
    ],
)
def test_no_other_file_is_served(address: str, path: str) -> None:
    # httpx would tidy the path up.
    with closing(HTTPConnection(address.removeprefix("http://"))) as connection:
        connection.request("GET", f"/page/{path}")
        assert connection.getresponse().status == 404


def test_an_unchanged_file_is_not_sent_again(address: str) -> None:
    first = httpx.get(f"{address}/page/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(f"{address}/page/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = httpx.head(f"{address}/")
    assert (head.status_code, head.content) == (200, b"")
    assert "default-src 'self'" in head.headers["content-security-policy"]


def inspect(address: str, **asked: Any) -> Any:
    # A client of httpx takes long to make.
    with urlopen(f"{address}/inspect?{urlencode(asked)}") as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    ("model", "policy", "budget"), [(NAME, POLICY, CAPACITY), ("grouped", GROUPS, None)]
)
def test_inspect_returns_the_held_tokens(
    address: str, model: str, policy: Policy, budget: Any
) -> None:
    chance = random.Random(3)
    shape = ModelShape((KV_HEADS,) * LAYERS)
    groups = bind_policy(policy, budget, shape, bytes_per_token=1, prompt_tokens=1).groups
    for num_seen in (0, 1, 40, 41, *(chance.randrange(10 ** chance.randint(2, 6)) for _ in "1234")):
        told = inspect(address, seen=num_seen, model=model)
        assert told["num_seen"] == num_seen
        num_compactions = 0
        for group in groups:
            kept = kept_after(group.schedule, num_seen)
            num_compactions += kept.num_compactions
            for layer, heads in group.heads.items():
                for head in heads:
                    held = told["held"][told["layers"][layer][head]]
                    assert held == kept.by_pattern[group.pattern(layer)]
        assert [len(heads) for heads in told["layers"]] == [KV_HEADS] * LAYERS
        assert told["compactions"] == num_compactions
        assert told["capacity"] == max(group.schedule.capacity for group in groups)


@pytest.mark.parametrize("model", [NAME, "grouped"])
def test_changes_at_is_the_next_eviction(address: str, model: str) -> None:
    """Until `changes_at` every list only gets each token."""
    num_seen = 0
    while num_seen < 200:
        now = inspect(address, seen=num_seen, model=model)
        last = now["changes_at"] - 1
        before = inspect(address, seen=last, model=model)
        new = list(range(num_seen, last))
        assert before["held"] == [held + new for held in now["held"]]
        assert before["compactions"] == now["compactions"]
        num_seen = now["changes_at"]
        assert inspect(address, seen=num_seen, model=model)["compactions"] > now["compactions"]


def test_compactions_are_counted_over_periods() -> None:
    for num_seen in (0, 39, 41, 500, 5_000, 20_011):
        schedule = POLICY.schedule(LAYERS, CAPACITY)
        played = KeptTokens(schedule)
        played.advance(num_seen)
        assert kept_after(schedule, num_seen).num_compactions == played.num_compactions


def test_bytes(address: str) -> None:
    engine, model = new_engine(), tiny_llama()
    head = model.config.hidden_size // model.config.num_attention_heads
    of_token = 4 * 2 * head * KV_HEADS * LAYERS
    for num_seen in (0, 7, 1_000):
        told = inspect(address, seen=num_seen)
        assert told["bytes"] == engine.bytes_per_sequence
        held = kept_after(POLICY.schedule(LAYERS, CAPACITY), num_seen).state.num_cached
        sinks_again = min(held, POLICY.sinks) * of_token // 2
        assert told["held_bytes"] == held * of_token + sinks_again
        assert told["full_bytes"] == num_seen * of_token


@pytest.mark.parametrize("seen", [-1, "x", 1.5, 10**13, "", None])
def test_invalid_numbers_of_tokens_are_refused(address: str, seen: Any) -> None:
    answer = httpx.get(f"{address}/inspect", params={} if seen is None else {"seen": seen})
    assert answer.status_code == 400
    assert "seen" in answer.json()["error"]["message"]
    assert httpx.get(f"{address}/inspect?seen=1&model=none").status_code == 404


def test_the_page_needs_no_key() -> None:
    with service() as one, listening(one, api_key="secret") as address:
        assert httpx.get(f"{address}/").status_code == 200
        assert httpx.get(f"{address}/page/app.js").status_code == 200
        assert httpx.get(f"{address}/inspect?seen=1").status_code == 401


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        give_up: Callable[[str], Any] = pytest.fail if "CI" in os.environ else pytest.skip
        give_up("chromium is not on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, **context: Any) -> Iterator[Page]:
    """The page, in which nothing may go wrong that it does not say."""
    with browser.new_context(viewport=context.pop("viewport", None), **context) as tab:
        page = tab.new_page()
        page.set_default_timeout(20_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(address)
        yield page
        # Chromium writes each refused request there, and offers no way not to.
        assert [text for text in wrong if "Failed to load resource" not in text] == []


def say(page: Page, text: str, most: int = 60) -> None:
    page.fill("[name=most]", str(most))
    page.focus("#text")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def wait(page: Page) -> None:
    expect(page.locator("#send")).to_be_enabled(timeout=30_000)


def until(page: Page, script: str) -> None:
    """As Playwright's own, which the page's policy forbids."""
    end = time.monotonic() + 20
    while not page.evaluate(script):
        assert time.monotonic() < end, script
        time.sleep(0.02)


def number(page: Page, name: str) -> int:
    return int(page.inner_text(f"#{name}").replace(",", ""))


def widths(page: Page) -> Any:
    return page.evaluate("[document.documentElement.scrollWidth, innerWidth]")


# Whether a pixel has a hue like that of what was dropped just now.
ORANGE = """() => {
  const canvas = document.getElementById("ladder");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4) {
    if (data[at] > data[at + 2] + 60 && data[at + 1] < data[at] - 30) return true;
  }
  return false;
}"""


@pytest.mark.slow
def test_a_message_sent_by_keyboard(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        expect(page.locator("#status")).to_have_text("Ready.")
        assert page.evaluate("document.activeElement.id") == "text"
        page.keyboard.type("the cat")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("the dog")
        page.keyboard.press("Enter")
        expect(page.locator("article.user p")).to_have_text("the cat\nthe dog")
        lengths = set()
        while page.is_disabled("#send"):
            lengths.add(
                page.evaluate("document.querySelector('article.assistant p').textContent.length")
            )
        assert len(lengths) > 3
        expect(page.locator("#status")).to_contain_text("Done: ")
        expect(page.locator("article.assistant .note")).to_contain_text("limit")

        seen = number(page, "seen")
        expect(page.locator("#shown span")).to_have_count(seen + 1)
        told = inspect(address, seen=seen)
        assert told["compactions"] > 10
        expect(page.locator("#compactions")).to_have_text(str(told["compactions"]))
        lists = [told["held"][heads[0]] for heads in told["layers"]]
        assert abs(number(page, "held") - sum(map(len, lists)) / LAYERS) <= 0.5
        dropped = page.locator("#shown span.c0").count()
        assert dropped == seen - len(set().union(*lists))
        expect(page.locator("#shown span.unread")).to_have_count(1)

        for _ in range(20):
            if page.evaluate("document.activeElement.id") == "ladder":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Home")
        expect(page.locator("#token")).to_contain_text(
            "Token 0, “<|im_start|>”: held in all 5 layers"
        )
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#token")).to_contain_text("Token 9, ")
        page.keyboard.press("End")
        expect(page.locator("#token")).to_contain_text(f"Token {seen - 1}, ")
        page.keyboard.press("Escape")
        expect(page.locator("#token")).to_be_empty()
        until(page, f"document.getElementById('ladder').ariaLabel?.includes('after {seen} tokens')")


@pytest.mark.slow
def test_pointing_at_a_token_shows_its_layers(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.select_option("#model", "grouped")
        say(page, "the sea and the cat")
        wait(page)
        seen = number(page, "seen")
        expect(page.locator("#ladder")).to_be_visible()
        told = inspect(address, seen=seen, model="grouped")
        layers = [[told["held"][index] for index in heads] for heads in told["layers"]]
        token = next(t for t in range(4, seen) if t in layers[3][1] and t not in layers[3][0])
        until(
            page, f"document.getElementById('compactions').textContent === '{told['compactions']}'"
        )
        extent = number(page, "last-token")
        page.hover("#ladder", position={"x": 1, "y": 5})
        width = page.evaluate("document.getElementById('ladder').clientWidth")
        page.hover("#ladder", position={"x": (token + 0.5) * width / extent, "y": 5})
        words = page.locator("#token")
        expect(words).to_contain_text(f"Token {token}, ")
        num_layers = sum(any(token in held for held in heads) for heads in layers)
        expect(words).to_contain_text(f"held in {num_layers} of 5 layers")
        expect(words).to_contain_text("by some KV heads in 3")
        expect(page.locator("#shown span.picked")).to_have_count(1)
        page.hover("#shown span:nth-child(1)")
        expect(words).to_contain_text("Token 0, “<|im_start|>”: held in all 5 layers")
        # Of several tokens that are one character, only the last has a text.
        told = page.evaluate("import('/page/format.js').then(m => m.describeToken(3, '', [1, 1]))")
        assert told == "Token 3, a part of a character: held in all 2 layers."


@pytest.fixture
def at_a_slow_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens come as slowly as someone reads, however fast the processor is."""
    step = Scheduler.step

    def slow_step(scheduler: Scheduler) -> bool:
        time.sleep(0.02)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", slow_step)


@pytest.mark.slow
@pytest.mark.usefixtures("at_a_slow_pace")
@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_a_compaction_is_shown_as_it_happens(browser: Browser, address: str, motion: Any) -> None:
    with opened(browser, address, reduced_motion=motion) as page:
        say(page, "the sea", most=2_000)
        until(page, "Number(document.getElementById('compactions').textContent) > 5")
        flashed = 0
        while page.is_disabled("#send") and flashed < 5 and number(page, "seen") < 400:
            flashed += page.evaluate(ORANGE)
        assert flashed == (5 if motion == "no-preference" else 0)
        page.click("#stop")
        wait(page)
        expect(page.locator("article.assistant .note")).to_have_text("stopped")


@pytest.mark.slow
def test_a_second_message_and_a_new_conversation(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        say(page, "the sea")
        wait(page)
        first = number(page, "seen")
        with page.expect_request("**/v1/chat/completions") as asked:
            say(page, "the cat")
        roles = [message["role"] for message in asked.value.post_data_json["messages"]]
        assert roles == ["user", "assistant", "user"]
        wait(page)
        assert number(page, "seen") > first
        page.click("#new")
        expect(page.locator("#seen")).to_have_text("0")
        expect(page.locator("article")).to_have_count(0)
        expect(page.locator("#compactions")).to_have_text("0")
        assert page.locator("#shown span").count() == 0


@pytest.mark.slow
def test_a_phone(browser: Browser, address: str) -> None:
    size: Any = {"width": 360, "height": 700}
    with opened(browser, address, viewport=size, has_touch=True) as page:
        assert widths(page) == [360, 360]
        say(page, "the sea " + "x" * 100)
        wait(page)
        assert widths(page) == [360, 360]
        page.locator("#ladder").tap(position={"x": 2, "y": 5})
        expect(page.locator("#token")).to_contain_text("held in all 5 layers")
        for name in ("#text", "#send", "#ladder", "#tokens"):
            box = page.locator(name).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360


@pytest.mark.slow
def test_dark_and_light(browser: Browser, address: str) -> None:
    back = "getComputedStyle(document.querySelector('section')).backgroundColor"
    pixel = "[...document.getElementById('ladder').getContext('2d').getImageData(3, 3, 1, 1).data]"
    with opened(browser, address, color_scheme="light") as page:
        say(page, "the sea", most=5)
        wait(page)
        assert page.evaluate(back) == "rgb(255, 255, 255)"
        light = page.evaluate(pixel)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(back) == "rgb(23, 27, 34)"
        until(page, f"{pixel}.join() !== '{','.join(map(str, light))}'")


@pytest.mark.slow
def test_a_refused_message_is_explained_and_kept(browser: Browser) -> None:
    with (
        service(prompt_tokens=150, is_endless=True) as one,
        listening(one, api_key="secret") as address,
        opened(browser, address) as page,
    ):
        problem = page.locator("#problem")
        expect(problem).to_contain_text("needs an API key")
        page.fill("[name=key]", "wrong")
        page.press("[name=key]", "Enter")
        expect(problem).to_contain_text("This API key is wrong")
        page.fill("[name=key]", "secret")
        page.press("[name=key]", "Enter")
        expect(problem).to_be_hidden()
        expect(page.locator("#key")).to_be_hidden()
        say(page, "y" * 300)
        expect(problem).to_contain_text("this server accepts at most 150; shorten it")
        expect(page.locator("#text")).to_have_value("y" * 300)
        expect(page.locator("article")).to_have_count(0)
        page.fill("#text", "")
        say(page, "a", most=3)
        expect(problem).to_be_hidden()
        wait(page)
        expect(page.locator("article")).to_have_count(2)
        page.route("**/v1/chat/completions", lambda route: route.abort())
        say(page, "are you there?")
        expect(problem).to_contain_text("The server cannot be reached")
        expect(page.locator("#text")).to_have_value("are you there?")


@pytest.mark.slow
def test_a_full_queue_is_shown(browser: Browser) -> None:
    with (
        service(max_sequences=1, waiting=0, is_endless=True) as one,
        listening(one) as address,
        opened(browser, address) as page,
        httpx.stream(
            "POST",
            f"{address}/v1/completions",
            json={"prompt": "a", "stream": True, "max_tokens": 100_000},
        ) as stream,
    ):
        # It must live on: the stream ends with it.
        pieces = stream.iter_text()
        next(pieces)
        say(page, "the sea")
        expect(page.locator("#problem")).to_contain_text("the queue is full; retry in 5 s.")
        expect(page.locator("#text")).to_have_value("the sea")


@pytest.mark.slow
def test_a_long_text_stays_quick(browser: Browser, address: str) -> None:
    """100,000 tokens, 80 layers that hold 4,096 each."""
    read, new, layers, half = 100_000, 200, 80, 2_048

    def answer(route: Route) -> None:
        seen = int(parse_qs(urlparse(route.request.url).query)["seen"][0])
        old = max(0, seen - half)
        step = max(1, old // half)
        held = [
            [*range(layer % step, old, step)[:half], *range(old, seen)] for layer in range(layers)
        ]
        told = {
            "num_seen": seen,
            "held": held,
            "layers": [[layer] * 8 for layer in range(layers)],
            "changes_at": seen + 10,
            "compactions": seen // 10,
            "bytes": 1,
            "held_bytes": 1,
            "full_bytes": seen,
            "full_bytes_per_token": 1,
        }
        route.fulfill(json=told)

    def chat(route: Route) -> None:
        told = [{"prompt": [" word"] * read}, {"seen": 0, "reused": 0}, {"prefilled": read}]
        told += [{"new": [" new"]}] * new
        lines = [json.dumps({"choices": [], "lacache": one}) for one in told]
        said = json.dumps({"choices": [{"delta": {"content": "x"}}]})
        body = "".join(f"data: {line}\n\n" for line in [*lines, said, "[DONE]"])
        route.fulfill(body=body, content_type="text/event-stream")

    with opened(browser, address) as page:
        page.route("**/inspect?*", answer)
        page.route("**/v1/chat/completions", chat)
        # What the real server has told before is of another model.
        page.reload()
        say(page, "go")
        wait(page)
        until(
            page,
            f"document.getElementById('compactions').textContent === '{(read + new - 1) // 10:,}'",
        )
        assert page.locator("#shown span").count() <= 4_500
        took = page.evaluate("""async () => {
            const canvas = document.getElementById("ladder");
            canvas.focus();
            const began = performance.now();
            for (let turn = 0; turn < 20; turn += 1) {
              canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
              await new Promise(requestAnimationFrame);
            }
            return (performance.now() - began) / 20;
        }""")
        assert took < 100
        page.click("#earlier")
        assert 8_000 <= page.locator("#shown span").count() <= 8_500

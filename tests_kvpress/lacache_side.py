"""Run LaCache on cases, with the main environment's Python.

    python lacache_side.py CASES.json FOUND.json

reads a list of cases and writes, for each, what the cache keeps of the context, and the logits
and greedy tokens up to the first compaction that a press would not have done.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lacache import LaCache, Ladder


@cache
def loaded(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def run(case: dict[str, Any]) -> dict[str, Any]:
    model = loaded(case["model"])
    held = LaCache(model, case["budget"], Ladder(**case["options"]), prefill="dense")
    held.prefill(model, torch.tensor([case["context"]]))
    room = held.next_chunk(case["most"])
    question = case["question"][:room]
    logits = [held.prefill(model, torch.tensor([question]))[0]]
    kept = [held.kept_tokens(layer)[: -len(question)] for layer in held.growing_layers]
    tokens = [int(logits[-1].argmax())]
    for _ in range(room - len(question)):
        logits.append(held.prefill(model, torch.tensor([tokens[-1:]]))[0])
        tokens.append(int(logits[-1].argmax()))
    return {
        "kept": kept,
        "question": question,
        "logits": torch.stack(logits).tolist(),
        "tokens": tokens,
    }


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(case) for case in cases]))

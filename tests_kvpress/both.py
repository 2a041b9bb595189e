"""One case, run by kvpress and by LaCache."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from lacache.integrations.kvpress import LadderPress

ROOT = Path(__file__).parents[1]


@final
@dataclass(frozen=True)
class Case:
    """A context, a question and a press; at most `most` tokens follow the context."""

    model: Path
    context: Sequence[int]
    question: Sequence[int]
    ratio: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)
    most: int = 24

    def press(self) -> LadderPress:
        return LadderPress(self.ratio, **self.options)


def lacache_side(python: Path, cases: Sequence[Case], folder: Path) -> list[dict[str, Any]]:
    """Run LaCache on each case, in the other environment."""
    asked, found = folder / "cases.json", folder / "found.json"
    asked.write_text(
        json.dumps(
            [
                {
                    "model": str(case.model),
                    "context": list(case.context),
                    "question": list(case.question),
                    "budget": round(1.0 - case.ratio, 6),
                    "options": case.options,
                    "most": case.most,
                }
                for case in cases
            ]
        )
    )
    script = Path(__file__).with_name("lacache_side.py")
    done = subprocess.run(
        [python, script, asked, found],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    results: list[dict[str, Any]] = json.loads(found.read_text())
    return results


@torch.no_grad()
def press_side(case: Case, num_tokens: int, question: Sequence[int]) -> dict[str, Any]:
    """Run kvpress on a case: the context, then the question, then greedy decoding.

    Args:
        case: see `Case`.
        num_tokens: number of tokens to generate.
        question: the part of it that LaCache processes before it compacts again.
    """
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32).eval()
    cache = DynamicCache()
    with case.press()(model):
        model.model(input_ids=torch.tensor([case.context]), past_key_values=cache)
    held = [layer.keys.shape[2] for layer in cache.layers]
    chunk, position = list(question), len(case.context)
    logits: list[Tensor] = []
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        positions = torch.arange(position, position + len(chunk))[None]
        output = model(
            input_ids=torch.tensor([chunk]), past_key_values=cache, position_ids=positions
        )
        position += len(chunk)
        logits.append(output.logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        chunk = tokens[-1:]
    return {"held": held, "logits": torch.stack(logits), "tokens": tokens}

"""One case, run by both sides."""

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
    """A context, a question, and a press; `most` tokens are read after the context."""

    model: Path
    context: Sequence[int]
    question: Sequence[int]
    ratio: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)
    most: int = 24

    def press(self) -> LadderPress:
        return LadderPress(self.ratio, **self.options)


def lacache_side(python: Path, cases: Sequence[Case], folder: Path) -> list[dict[str, Any]]:
    """What LaCache makes of each case, in the other environment."""
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
    """The same with kvpress, in its way: the context, then the question, then greedily.

    Args:
        case: what is run.
        num_tokens: how many are written.
        question: as much of it as LaCache reads before it compacts again.
    """
    model = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32).eval()
    cache = DynamicCache()
    with case.press()(model):
        model.model(input_ids=torch.tensor([case.context]), past_key_values=cache)
    held = [layer.keys.shape[2] for layer in cache.layers]
    piece, place = list(question), len(case.context)
    logits: list[Tensor] = []
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        positions = torch.arange(place, place + len(piece))[None]
        output = model(
            input_ids=torch.tensor([piece]), past_key_values=cache, position_ids=positions
        )
        place += len(piece)
        logits.append(output.logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        piece = tokens[-1:]
    return {"held": held, "logits": torch.stack(logits), "tokens": tokens}

"""What a text in an engine must equal: itself alone, over a transformers cache."""

from typing import Any

import torch

from lacache import LaCache, Sampling, stream
from lacache.policies import Ladder, Policy

PLAN: tuple[int, Policy] = (24, Ladder(span=2, overlap=1, sinks=2, recent=6, evict_batch=3))
"""A budget and a policy."""


def continued(
    model: Any,
    text: list[int],
    num_new: int,
    plan: tuple[int | None, Policy] = PLAN,
    sampling: Sampling | None = None,
) -> list[int]:
    """The tokens that follow a text."""
    cache = LaCache(model, *plan)
    prompt = torch.tensor([text])
    return list(stream(model, prompt, cache, max_new_tokens=num_new, sampling=sampling))

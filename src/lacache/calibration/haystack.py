"""Running text to hide probes in, sampled from the model itself: no file and no network."""

import math
from typing import Any

import torch
from torch import Tensor

from lacache.common.packages import quiet_imports
from lacache.common.validation import validate_int
from lacache.models.decoder import cache_argument

with quiet_imports():
    from transformers import DynamicCache

_OPENING = "That was the year in which"
_PIECE = 48
"""Tokens of a piece. Pieces are sampled side by side, so that many cost little more than one."""
_SPARE = 1.5
"""Sampled tokens for each wanted one: pieces are cut at the end of their last sentence."""
_TOP_K = 50


def sample_haystack(model: Any, tokenizer: Any, *, num_tokens: int, seed: int) -> str:
    """Return running text of at least a number of tokens, the same for the same arguments.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        num_tokens: tokens that the text has at least.
        seed: of the sampling.

    Raises:
        ConfigError: `num_tokens` or `seed` is out of range.
    """
    validate_int("num_tokens", num_tokens, 1)
    validate_int("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    opening = tokenizer(_OPENING, return_tensors="pt").input_ids
    pieces: list[str] = []
    missing = num_tokens
    while missing > 0:
        rows = math.ceil(_SPARE * missing / _PIECE)
        sampled = _sample(model, opening.expand(rows, -1), tokenizer.all_special_ids, generator)
        pieces += [_whole_sentences(tokenizer.decode(row)) for row in sampled]
        text = " ".join(pieces)
        found = len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        missing = num_tokens - found
    return text


@torch.no_grad()
def _sample(
    model: Any, opening: Tensor, special: list[int], generator: torch.Generator
) -> list[list[int]]:
    """Continue each row of token ids [B, N] by a piece."""
    device = model.get_input_embeddings().weight.device
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    tokens = opening
    sampled = []
    for _ in range(_PIECE):
        output = model(input_ids=tokens.to(device), **cache_argument(model, cache), use_cache=True)
        logits = output.logits[:, -1].float().cpu()
        logits[:, special] = -torch.inf
        best = logits.topk(min(_TOP_K, logits.shape[1]))
        drawn = best.values.softmax(-1).multinomial(1, generator=generator)
        tokens = best.indices.gather(1, drawn)
        sampled.append(tokens)
    return torch.cat(sampled, 1).tolist()


def _whole_sentences(text: str) -> str:
    """Return one line up to the end of the last sentence, or all of it if there is none."""
    line = " ".join(text.split())
    end = max(line.rfind(mark) for mark in ".!?") + 1
    return line[:end] if end else line

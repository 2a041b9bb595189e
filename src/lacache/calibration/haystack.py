"""Running text to hide probes in, sampled from the model itself: no file and no network."""

import math
from typing import Any

import torch
from torch import Tensor

from lacache.common.packages import quiet_imports
from lacache.common.validation import validate_int
from lacache.errors import ModelError
from lacache.models.decoder import cache_argument, input_device
from lacache.models.start_tokens import start_tokens

with quiet_imports():
    from transformers import DynamicCache

_OPENING = "That was the year in which"
_SAMPLE = 48
"""Tokens of a sample. Samples are drawn side by side, so that many cost little more than one."""
_SPARE = 1.5
"""Sampled tokens for each wanted one: samples are cut at the end of their last sentence."""
_MOST_BATCHES = 32
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
        ModelError: the model's logits are not finite, or hardly anything but white space follows.
    """
    validate_int("num_tokens", num_tokens, 1)
    validate_int("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    plain = tokenizer(_OPENING, add_special_tokens=False).input_ids
    opening = torch.tensor([[*start_tokens(tokenizer), *plain]])
    samples: list[str] = []
    found = 0
    for _ in range(_MOST_BATCHES):
        count = math.ceil(_SPARE * (num_tokens - found) / _SAMPLE)
        sampled = _sample(model, opening.expand(count, -1), tokenizer.all_special_ids, generator)
        samples += [_whole_sentences(tokenizer.decode(ids)) for ids in sampled]
        text = " ".join(" ".join(samples).split())
        found = len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        if found >= num_tokens:
            return text
    raise ModelError(
        f"{len(samples)} samples of {_SAMPLE} tokens hold {found} tokens of text and must hold "
        f"{num_tokens}; calibrate with a document (haystack=, or --text)"
    )


@torch.no_grad()
def _sample(
    model: Any, opening: Tensor, special: list[int], generator: torch.Generator
) -> list[list[int]]:
    """Return a sample after each row of token ids [B, N]."""
    device = input_device(model)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    tokens = opening
    sampled = []
    for _ in range(_SAMPLE):
        output = model(input_ids=tokens.to(device), **cache_argument(model, cache), use_cache=True)
        logits = output.logits[:, -1].float().cpu()
        # A tokenizer may have special tokens that the model has not.
        logits[:, [i for i in special if i < logits.shape[1]]] = -torch.inf
        best = logits.topk(min(_TOP_K, logits.shape[1]))
        chances = best.values.softmax(-1)
        if not chances.isfinite().all():
            raise ModelError(
                "the model's logits are NaN or infinite and must be finite, so no text can be "
                "sampled; load the model with dtype='float32' and calibrate it again"
            )
        drawn = chances.multinomial(1, generator=generator)
        tokens = best.indices.gather(1, drawn)
        sampled.append(tokens)
    return torch.cat(sampled, 1).tolist()


def _whole_sentences(text: str) -> str:
    """Return one line up to the end of the last sentence, or all of it if there is none."""
    line = " ".join(text.split())
    end = max(line.rfind(mark) for mark in ".!?") + 1
    return line[:end] if end else line

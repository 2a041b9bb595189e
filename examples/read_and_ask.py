"""Prefill a text far longer than the cache, then ask about its beginning."""

import torch

from lacache import LaCache, stream
from lacache.models import load_model

loaded = load_model("default")
model, tokenizer = loaded.model, loaded.tokenizer

filler = "The harbour was quiet that day, and the boats lay in the mist. "
book = filler * 8 + "The captain's favourite number is 4172. " + filler * 40
question = "The captain's favourite number is"


def tokens(text: str) -> torch.Tensor:
    return tokenizer(text, return_tensors="pt").input_ids


cache = LaCache(model, budget=0.4, policy="recall")
with torch.inference_mode():
    cache.prefill(model, tokens(book))
print(cache.report())

answer = list(stream(model, tokens(question), cache=cache, max_new_tokens=6))
print(question + tokenizer.decode(answer))

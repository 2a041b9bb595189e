"""Generate 200 tokens while each layer holds at most 64."""

from lacache import LaCache
from lacache.models import load_model

loaded = load_model("default")
model, tokenizer = loaded.model, loaded.tokenizer

cache = LaCache(model, budget=64)
inputs = tokenizer("Once upon a time", return_tensors="pt")
# Before transformers 5.24 the argument is called past_key_values.
tokens = model.generate(**inputs, cache=cache, max_new_tokens=200, min_new_tokens=200)
print(tokenizer.decode(tokens[0]))
print(cache.report())

"""Generate five sequences of different lengths, three at a time, in memory known beforehand."""

from lacache import Engine, Sampling
from lacache.models import load_model

loaded = load_model("default")
model, tokenizer = loaded.model, loaded.tokenizer

engine = Engine(model, budget=128, max_sequences=3)
print(f"{engine.num_bytes / 2**20:.1f} MiB of keys and values for three sequences of any length")

beginnings = [
    "Once upon a time",
    "The sea was calm, and",
    "My grandmother always said that",
    "A short history of bread:",
    "Dear diary, today",
]
sampling = Sampling(temperature=0.8, top_p=0.95, seed=7)
streams = [
    engine.submit(tokenizer(text).input_ids, sampling=sampling, max_new_tokens=40)
    for text in beginnings
]
for text, stream in zip(beginnings, streams, strict=True):
    print("-", text + tokenizer.decode(list(stream)))

"""Generate with a bounded cache, alone or as one of several processes that share a model.

python -m torch.distributed.run --nproc-per-node 2 parallel_generate.py RESULT MODEL_FOLDER...
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lacache import LaCache, Ladder
from lacache.models.decoder import cache_argument
from tests.cache.tiny_models import random_ids

KV_DTYPES = (None, "int8")
LADDER = Ladder(span=2, sinks=2, recent=5, evict_batch=3)


def generate(folder: str, kv_dtype: str | None = None) -> dict[str, Any]:
    """Return the generated tokens and the bytes of this process's cache."""
    shared: dict[str, Any] = {}
    if "RANK" in os.environ:
        from transformers.distributed import DistributedConfig

        shared["distributed_config"] = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **shared)
    cache = LaCache(model, 16, LADDER, kv_dtype=kv_dtype)
    ids = random_ids(50, batch_size=2)
    generated = model.generate(
        ids, **cache_argument(model, cache), max_new_tokens=40, do_sample=False
    )
    return {"generated": generated[:, 50:].tolist(), "bytes": cache.report().bytes}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [generate(folder, kv_dtype) for folder in sys.argv[2:] for kv_dtype in KV_DTYPES]
    Path(f"{sys.argv[1]}.{os.environ['RANK']}").write_text(json.dumps(found))

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lacache.common.records import Record
from lacache.evals.reading import model_record, read
from lacache.policies import Full, Ladder, Policy, Streaming

TOKENS = 300
POLICIES: dict[str, Policy] = {
    "full": Full(),
    "streaming": Streaming(48, sinks=2, evict_batch=8),
    "ladder": Ladder(capacity=48, span=2, overlap=1, sinks=2, evict_batch=8),
}


@pytest.fixture(scope="session")
def model() -> Any:
    """Five layers; large weights, so that it matters what is attended to."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    return torch.randint(0, 64, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="session")
def records(model: Any, token_ids: list[int]) -> list[Record]:
    """The readings of one text with all three caches. Not to be changed."""
    about = model_record(model, "tiny")
    return [
        read(model, token_ids, policy, chunk=8)[0].record(
            label=name, model=about, text_name="random"
        )
        for name, policy in POLICIES.items()
    ]

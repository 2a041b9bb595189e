from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lacache.common.records import Record
from lacache.evals.compare import trace_record
from lacache.evals.runner import EvalRunner
from lacache.evals.runs import RunSpec
from lacache.evals.tasks.ppl import Perplexity
from lacache.models import LoadedModel
from lacache.models.model_info import model_info
from lacache.policies import Full, Ladder, LayerPolicy, Streaming
from tests.engine.tiny import tiny_tokenizer

TOKENS = 300
POLICIES: dict[str, LayerPolicy] = {
    "full": Full(),
    "streaming": Streaming(sinks=2, evict_batch=8),
    "ladder": Ladder(span=2, overlap=1, sinks=2, evict_batch=8),
}
CAPACITY = 48


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


class Drawn(Perplexity):
    """Random tokens in place of a text."""

    def token_ids(self, tokenizer: Any, *, length: int) -> list[int]:
        drawn = torch.randint(0, 64, (TOKENS,), generator=torch.Generator().manual_seed(1))
        ids: list[int] = drawn.tolist()
        return ids[:length]


@pytest.fixture(scope="session")
def records(model: Any) -> list[Record]:
    """The runs of one text with all three policies, as the demo records them. Not to be changed."""
    runner = EvalRunner(LoadedModel(model, tiny_tokenizer(), "tiny", Path()), chunk_size=8)
    found = []
    for name, policy in POLICIES.items():
        spec = RunSpec(Drawn("random"), policy, TOKENS, str(CAPACITY))
        record, monitor = runner.run_perplexity(spec)
        found.append({**record, **trace_record(name, monitor, model_info(model).growing)})
    return found

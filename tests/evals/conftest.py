from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lacache.calibration.store import profile_path, save_profile
from lacache.common.records import Record
from lacache.evals.compare import trace_record
from lacache.evals.runner import EvalRunner
from lacache.evals.runs import RunSpec
from lacache.evals.tasks.ppl import Perplexity
from lacache.models import LoadedModel
from lacache.models.fingerprint import fingerprint
from lacache.models.model_info import model_info
from lacache.policies import Full, HeadProfile, Ladder, LayerPolicy, Streaming
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


@pytest.fixture
def make_up_profile(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any], None]:
    """Store a made-up head profile of a model, for the policies that need one."""
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path_factory.mktemp("home")))

    def store(model: Any) -> None:
        heads = model_info(model).num_heads
        order = tuple((layer, head) for layer, count in enumerate(heads) for head in range(count))
        need = tuple((0.1,) * count for count in heads)
        profile = HeadProfile(fingerprint(model), "tiny", 64, 4, need, order[::-1], ((0, 1.0),))
        save_profile(profile, profile_path(profile.fingerprint))

    return store


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

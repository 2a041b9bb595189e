"""vLLM with a policy generates what lacache's engine and the slow reference generate."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lacache.integrations.vllm.kv_cache import PAGES_PER_BLOCK
from lacache.integrations.vllm.page_plan import find_page_size
from lacache.integrations.vllm.settings import Settings
from lacache.integrations.vllm.worker_heads import WorkerHeads
from lacache.policies import HeadProfile, Ladder, parse_policy
from lacache.policies.head_profile import profile_json
from tests_vllm.models import CONFIGS, saved
from tests_vllm.serving import (
    NUM_NEW,
    generate,
    generate_by_engine,
    generate_slowly,
    generate_with_preemption,
    random_prompts,
    serving,
)

BUDGET = 64
POLICY = Ladder(span=3, overlap=1, evict_batch=8)
LADDER = {"budget": BUDGET, "policy": str(POLICY)}
# The history and two tiers of windows, which shrink for it.
RETRIEVAL = "retrieval:heads=2.0+4.1/0.1+3:window=0.5:evict_batch=8"
NUM_HEADS = (2,) * 6
ORDER = ((4, 1), (1, 0), *((layer, 0) for layer in (5, 0, 2, 3, 4)))
ORDER += tuple((layer, 1) for layer in (0, 1, 2, 3, 5))
PROFILE = HeadProfile("x", "m", 24, 2, ((0.05, 0.05),) * 6, ORDER, ((2, 0.4),))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return saved("llama", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("family", CONFIGS)
def test_families(family: str, tmp_path: Path) -> None:
    model, folder = saved(family, tmp_path)
    prompts = random_prompts()
    with serving(folder, LADDER) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, BUDGET, POLICY, prompts)
    assert [*prompts[1], *found[1]] == generate_slowly(model, BUDGET, POLICY, prompts[1])


@pytest.mark.parametrize(
    ("budget", "policy", "chunk"),
    [
        (64, "ladder:span=3:overlap=1:evict_batch=1", 2048),
        (100, "ladder:span=2:geometry=consecutive:evict_batch=1000", 37),
        (333, "ladder:span=3:overlap=2:evict_batch=40:unit=2:recent=30", 512),
        (512, "ladder:span=4:sinks=0:window_layers=0", 8192),
        (48, "paper:span=3", 1024),
        (64, "streaming:evict_batch=1", 512),
        (200, "streaming:evict_batch=33:positions=slots", 100),
    ],
)
def test_policies_and_chunks(llama: tuple[Any, Path], budget: int, policy: str, chunk: int) -> None:
    model, folder = llama
    prompts = random_prompts()
    settings = {"budget": budget, "policy": policy}
    with serving(folder, settings, max_num_batched_tokens=chunk) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, budget, policy, prompts)


@pytest.mark.parametrize(
    ("budget", "policy", "chunk"),
    [
        (64, "ladder:span=3:overlap=1:evict_batch=8", 512),
        # Two compactions for each trained length.
        (140, "streaming:sinks=3:evict_batch=20", 100),
    ],
)
def test_texts_beyond_the_trained_length(
    budget: int, policy: str, chunk: int, tmp_path: Path
) -> None:
    """Keys are renumbered up to twenty times."""
    model, folder = saved("llama", tmp_path, max_position_embeddings=150)
    prompts = random_prompts()
    settings = {"budget": budget, "policy": policy}
    with serving(folder, settings, max_num_batched_tokens=chunk) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, budget, policy, prompts)


@pytest.mark.parametrize(
    ("policy", "budget", "chunk", "trained_length"),
    [
        ("retrieval:heads=2.0+4.1/0.1+3:window=0.5:evict_batch=1", 64, 37, 4096),
        ("retrieval:heads=5+1.0/0/3.1:window=0.8:evict_batch=60", 300, 512, 4096),
        ("retrieval:heads=0.1/1.0:window=0.35:evict_batch=13:sinks=0", 120, 100, 1000),
        # A history longer than the trained length, and the rotary table.
        ("retrieval:heads=3.0+4.1:window=0.35:evict_batch=5", 90, 512, 150),
        # Keys are renumbered up to twenty times.
        ("retrieval:heads=1-3/4.0:window=0.7:evict_batch=5", 90, 512, 150),
        ("retrieval:heads=3.0+4.0/5:window=0.5:evict_batch=9:positions=slots", 100, 100, 4096),
        (
            "groups:0+2.1@48@ladder:span=1:overlap=0:evict_batch=6:sinks=1"
            "/1+4@90@streaming:evict_batch=6/2.0+3+5@150@ladder:span=2:overlap=0:evict_batch=6",
            None,
            37,
            200,
        ),
    ],
)
def test_head_groups(
    policy: str, budget: int | None, chunk: int, trained_length: int, tmp_path: Path
) -> None:
    model, folder = saved("llama", tmp_path, max_position_embeddings=trained_length)
    prompts = random_prompts()
    settings = {"budget": budget, "policy": policy}
    with serving(folder, settings, max_num_batched_tokens=chunk) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, budget, policy, prompts)


@pytest.mark.parametrize("budget", [100, "150KiB"])
def test_default_policy_with_a_profile(llama: tuple[Any, Path], budget: int | str) -> None:
    model, folder = llama
    prompts = random_prompts()
    # In float32.
    slot = 2 * 32 * 4
    bound = Settings(budget, profile=PROFILE).bind(NUM_HEADS, slot)
    assert len(bound.groups) > 2
    assert bound.capacity == (100 if budget == 100 else 150 * 1024 // (12 * slot))
    with serving(folder, {"budget": budget, "profile": profile_json(PROFILE)}) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, None, str(bound.explicit()), prompts)


def test_bfloat16(llama: tuple[Any, Path]) -> None:
    """Runs; kernels that round differently give no equal text."""
    _, folder = llama
    prompts = random_prompts()
    with serving(folder, {"budget": 100, "policy": RETRIEVAL}, dtype="bfloat16") as llm:
        found = generate(llm, prompts)
        assert generate(llm, prompts) == found
    assert [len(tokens) for tokens in found] == [NUM_NEW] * len(prompts)


def test_compiled_model(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, LADDER, enforce_eager=False) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, BUDGET, POLICY, prompts)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("tensor", str(POLICY)),
        ("pipeline", str(POLICY)),
        # Histories in one of the processes only.
        ("tensor", "retrieval:heads=1.1+4.1/2.1:window=0.5:evict_batch=8"),
        ("pipeline", "retrieval:heads=4.0+5.1/3:window=0.5:evict_batch=8"),
    ],
)
def test_two_processes(
    llama: tuple[Any, Path], kind: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = llama
    prompts = random_prompts()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    # vLLM cannot run stages of a pipeline that are not compiled on CPU.
    options = {f"{kind}_parallel_size": 2, "enforce_eager": kind == "tensor"}
    with serving(folder, {"budget": BUDGET, "policy": policy}, **options) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, BUDGET, policy, prompts)


def blocks_per_sequence(policy: str, budget: int) -> int:
    """Return the blocks that a sequence takes in the pool, with the sizes of `serving`."""
    bound = Settings(budget, parse_policy(policy)).bind(NUM_HEADS, 1)
    shard = dict.fromkeys(range(len(NUM_HEADS)), range(2))
    heads = WorkerHeads(bound.groups, shard, find_page_size(bound, least=32), 512, 4096)
    return -(-heads.num_pages // PAGES_PER_BLOCK)


@pytest.mark.parametrize("policy", [str(POLICY), RETRIEVAL])
def test_pool_so_small_that_requests_wait(llama: tuple[Any, Path], policy: str) -> None:
    """Two sequences fit in the pool (one block is vLLM's own); there are fourteen requests."""
    model, folder = llama
    prompts = random_prompts() + random_prompts(seed=2)
    blocks = blocks_per_sequence(policy, 300)
    options = {"num_gpu_blocks_override": 3 * blocks}
    with serving(folder, {"budget": 300, "policy": policy}, **options) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, 300, policy, prompts)


@pytest.mark.parametrize("policy", [str(POLICY), RETRIEVAL])
def test_preempted_requests_generate_the_same(llama: tuple[Any, Path], policy: str) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, {"budget": BUDGET, "policy": policy}) as llm:
        found = generate_with_preemption(llm, prompts)
    assert found == generate_by_engine(model, BUDGET, policy, prompts)


def test_capacity_beyond_the_longest_request(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts((5, 90))
    with serving(folder, LADDER | {"budget": 700}, max_model_len=200) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, 700, POLICY, prompts)


def test_without_settings_vllm_is_unchanged(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, None) as llm:
        found = generate(llm, prompts)
    for prompt, new in zip(prompts, found, strict=True):
        ids = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=len(new),
            do_sample=False,
            eos_token_id=None,
        )
        assert ids[0, len(prompt) :].tolist() == new

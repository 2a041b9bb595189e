"""vLLM with a ladder generates what lacache's engine and the slow reference generate."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lacache.policies import Ladder, Streaming
from lacache.policies.schedule import Policy
from tests_vllm.models import CONFIGS, saved
from tests_vllm.serving import (
    generate,
    generate_by_engine,
    generate_slowly,
    generate_with_preemption,
    random_prompts,
    serving,
)

POLICY = Ladder(capacity=64, span=3, overlap=1, evict_batch=8)
LADDER = {"budget": 64, "span": 3, "overlap": 1, "evict_batch": 8}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return saved("llama", tmp_path_factory.mktemp("models"))


def settings_of(policy: Policy) -> dict[str, Any]:
    """Return the plugin's settings for a policy."""
    if isinstance(policy, Streaming):
        return {
            "budget": policy.capacity,
            "policy": "streaming",
            "sinks": policy.sinks,
            "evict_batch": policy.evict_batch,
        }
    assert isinstance(policy, Ladder)
    names = (
        "span",
        "overlap",
        "sinks",
        "recent",
        "evict_batch",
        "geometry",
        "unit",
        "window_layers",
    )
    return {"budget": policy.capacity} | {name: getattr(policy, name) for name in names}


@pytest.mark.parametrize("family", CONFIGS)
def test_families(family: str, tmp_path: Path) -> None:
    model, folder = saved(family, tmp_path)
    prompts = random_prompts()
    with serving(folder, LADDER) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, POLICY, prompts)
    assert [*prompts[1], *found[1]] == generate_slowly(model, POLICY, prompts[1])


@pytest.mark.parametrize(
    ("policy", "chunk"),
    [
        (Ladder(capacity=64, span=3, overlap=1), 2048),
        (Ladder(capacity=100, span=2, geometry="consecutive", evict_batch=1000), 37),
        (Ladder(capacity=333, span=3, overlap=2, evict_batch=40, unit=2, recent=30), 512),
        (Ladder(capacity=512, span=4, sinks=0, evict_batch=64, window_layers=(0,)), 8192),
        (Streaming(capacity=64, sinks=4, evict_batch=1), 512),
        (Streaming(capacity=200, sinks=4, evict_batch=33), 100),
    ],
)
def test_policies_and_chunks(llama: tuple[Any, Path], policy: Policy, chunk: int) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, settings_of(policy), max_num_batched_tokens=chunk) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, policy, prompts)


def test_compiled_model(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, LADDER, enforce_eager=False) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, POLICY, prompts)


@pytest.mark.parametrize("kind", ["tensor", "pipeline"])
def test_two_processes(llama: tuple[Any, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = llama
    prompts = random_prompts()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    # vLLM cannot run stages of a pipeline that are not compiled on CPU.
    options = {f"{kind}_parallel_size": 2, "enforce_eager": kind == "tensor"}
    with serving(folder, LADDER, **options) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, POLICY, prompts)


def test_pool_so_small_that_requests_wait(llama: tuple[Any, Path]) -> None:
    """Three pages for each sequence, seven in the pool (one is vLLM's own), fourteen requests."""
    model, folder = llama
    prompts = random_prompts() + random_prompts(seed=2)
    with serving(folder, LADDER | {"budget": 300}, num_gpu_blocks_override=7) as llm:
        found = generate(llm, prompts)
    policy = Ladder(capacity=300, span=3, overlap=1, evict_batch=8)
    assert found == generate_by_engine(model, policy, prompts)


def test_preempted_requests_generate_the_same(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, LADDER) as llm:
        found = generate_with_preemption(llm, prompts)
    assert found == generate_by_engine(model, POLICY, prompts)


def test_capacity_beyond_the_longest_request(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts((5, 90))
    with serving(folder, LADDER | {"budget": 700}, max_model_len=200) as llm:
        found = generate(llm, prompts)
    policy = Ladder(capacity=700, span=3, overlap=1, evict_batch=8)
    assert found == generate_by_engine(model, policy, prompts)


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

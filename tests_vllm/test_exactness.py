"""vLLM with a ladder generates what lacache's engine and the slow reference generate."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lacache.policies import Ladder
from tests_vllm.models import CONFIGS, saved
from tests_vllm.serving import (
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


def test_compiled_model(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, LADDER, enforce_eager=False) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, BUDGET, POLICY, prompts)


@pytest.mark.parametrize("kind", ["tensor", "pipeline"])
def test_two_processes(llama: tuple[Any, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = llama
    prompts = random_prompts()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    # vLLM cannot run stages of a pipeline that are not compiled on CPU.
    options = {f"{kind}_parallel_size": 2, "enforce_eager": kind == "tensor"}
    with serving(folder, LADDER, **options) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, BUDGET, POLICY, prompts)


def test_pool_so_small_that_requests_wait(llama: tuple[Any, Path]) -> None:
    """Three pages for each sequence, seven in the pool (one is vLLM's own), fourteen requests."""
    model, folder = llama
    prompts = random_prompts() + random_prompts(seed=2)
    with serving(folder, LADDER | {"budget": 300}, num_gpu_blocks_override=7) as llm:
        found = generate(llm, prompts)
    assert found == generate_by_engine(model, 300, POLICY, prompts)


def test_preempted_requests_generate_the_same(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    prompts = random_prompts()
    with serving(folder, LADDER) as llm:
        found = generate_with_preemption(llm, prompts)
    assert found == generate_by_engine(model, BUDGET, POLICY, prompts)


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

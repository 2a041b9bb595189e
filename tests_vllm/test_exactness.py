"""vLLM with a ladder writes what lacache's own engine and the slow reference write."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lacache.policies import Ladder, Streaming
from lacache.policies.schedule import Policy
from tests_vllm.models import CONFIGS, saved
from tests_vllm.serving import (
    prompts,
    serving,
    written,
    written_by_engine,
    written_slowly,
    written_with_preemption,
)

POLICY = Ladder(capacity=64, span=3, overlap=1, evict_batch=8)
LADDER = {"budget": 64, "span": 3, "overlap": 1, "evict_batch": 8}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return saved("llama", tmp_path_factory.mktemp("models"))


def settings_of(policy: Policy) -> dict[str, Any]:
    """As a user writes them."""
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
    texts = prompts()
    with serving(folder, LADDER) as llm:
        found = written(llm, texts)
    assert found == written_by_engine(model, POLICY, texts)
    assert [*texts[1], *found[1]] == written_slowly(model, POLICY, texts[1])


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
    texts = prompts()
    with serving(folder, settings_of(policy), max_num_batched_tokens=chunk) as llm:
        found = written(llm, texts)
    assert found == written_by_engine(model, policy, texts)


def test_compiled_model(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    texts = prompts()
    with serving(folder, LADDER, enforce_eager=False) as llm:
        found = written(llm, texts)
    assert found == written_by_engine(model, POLICY, texts)


@pytest.mark.parametrize("way", ["tensor", "pipeline"])
def test_two_processes(llama: tuple[Any, Path], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = llama
    texts = prompts()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    # vLLM cannot run stages of a pipeline that are not compiled on CPU.
    options = {f"{way}_parallel_size": 2, "enforce_eager": way == "tensor"}
    with serving(folder, LADDER, **options) as llm:
        found = written(llm, texts)
    assert found == written_by_engine(model, POLICY, texts)


def test_pool_so_small_that_requests_wait(llama: tuple[Any, Path]) -> None:
    """Three pages for each sequence, seven in the pool (one is vLLM's own), fourteen requests."""
    model, folder = llama
    texts = prompts() + prompts(seed=2)
    with serving(folder, LADDER | {"budget": 300}, num_gpu_blocks_override=7) as llm:
        found = written(llm, texts)
    policy = Ladder(capacity=300, span=3, overlap=1, evict_batch=8)
    assert found == written_by_engine(model, policy, texts)


def test_preempted_requests_start_again_and_write_the_same(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    texts = prompts()
    with serving(folder, LADDER) as llm:
        found = written_with_preemption(llm, texts)
    assert found == written_by_engine(model, POLICY, texts)


def test_capacity_beyond_the_longest_request(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    texts = prompts((5, 90))
    with serving(folder, LADDER | {"budget": 700}, max_model_len=200) as llm:
        found = written(llm, texts)
    policy = Ladder(capacity=700, span=3, overlap=1, evict_batch=8)
    assert found == written_by_engine(model, policy, texts)


def test_no_settings_change_nothing(llama: tuple[Any, Path]) -> None:
    model, folder = llama
    texts = prompts()
    with serving(folder, None) as llm:
        found = written(llm, texts)
    for text, new in zip(texts, found, strict=True):
        ids = model.generate(
            torch.tensor([text]),
            max_new_tokens=len(new),
            do_sample=False,
            eos_token_id=None,
        )
        assert ids[0, len(text) :].tolist() == new

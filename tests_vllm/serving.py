"""Greedy completions of vLLM, and of the implementations that it must agree with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams

from lacache.engine.engine import Engine
from lacache.policies import LayerPolicy, Policy
from tests.cache.slow_cache import slow_next

LENGTHS = (5, 63, 64, 130, 517, 1_100, 2_000)
NUM_NEW = 70


def random_prompts(lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[list[int]]:
    """Return prompts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 128, (n,), generator=generator).tolist() for n in lengths]


@contextmanager
def serving(
    folder: Path, settings: Mapping[str, Any] | None, dtype: str = "float32", **options: Any
) -> Iterator[LLM]:
    """Run an engine of vLLM in a process of its own."""
    options = {
        "enforce_eager": True,
        "max_model_len": 4096,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 8,
        "skip_tokenizer_init": True,
    } | options
    additional = {} if settings is None else {"lacache": dict(settings)}
    llm = LLM(str(folder), dtype=dtype, additional_config=additional, seed=0, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def greedy(num_new: int = NUM_NEW) -> SamplingParams:
    """Return the parameters of greedy decoding."""
    return SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False)


def generate(llm: LLM, prompts: Sequence[Sequence[int]], num_new: int = NUM_NEW) -> list[list[int]]:
    """Generate with vLLM, all prompts at once."""
    requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = llm.generate(requests, greedy(num_new), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def generate_with_preemption(llm: LLM, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Generate with vLLM; all running requests lose their pages three times."""
    engine = llm.llm_engine
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, greedy())
    found: dict[int, list[int]] = {}
    steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[int(output.request_id)] = list(output.outputs[0].token_ids)
        steps += 1
        if steps in (3, 20, 41):
            assert engine.reset_prefix_cache(reset_running_requests=True)
    assert steps > 41
    return [found[number] for number in range(len(prompts))]


def generate_by_engine(
    model: Any,
    budget: int | None,
    policy: Policy | str,
    prompts: Sequence[Sequence[int]],
    num_new: int = NUM_NEW,
) -> list[list[int]]:
    """Generate with lacache's own engine, one prompt after the other."""
    engine = Engine(model, budget, policy, max_sequences=1)
    found = []
    for prompt in prompts:
        with engine.open() as session:
            found.append(list(session.generate(list(prompt), max_new_tokens=num_new)))
    return found


def generate_slowly(
    model: Any, budget: int, policy: LayerPolicy, prompt: Sequence[int], num_new: int = NUM_NEW
) -> list[int]:
    """Generate with the slow reference."""
    sized = (budget, policy)
    recent = getattr(policy.schedule(model.config.num_hidden_layers, budget), "recent", 0)
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(int(slow_next(model, torch.tensor([tokens]), sized, recent)[0, -1]))
    return tokens

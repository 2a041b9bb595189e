"""Greedy texts of vLLM, and of those that it must agree with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams

from lacache.engine.engine import Engine
from lacache.policies.schedule import Policy
from tests.cache.slow_cache import slow_generate

LENGTHS = (5, 63, 64, 130, 517, 1_100, 2_000)
NUM_NEW = 70


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[list[int]]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 128, (n,), generator=generator).tolist() for n in lengths]


@contextmanager
def serving(
    folder: Path, settings: Mapping[str, Any] | None, dtype: str = "float32", **options: Any
) -> Iterator[LLM]:
    """An engine of vLLM in a process of its own, gone at the end."""
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
    """The likeliest token each time."""
    return SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False)


def written(llm: LLM, texts: Sequence[Sequence[int]], num_new: int = NUM_NEW) -> list[list[int]]:
    """What vLLM writes, all at once."""
    asked = [{"prompt_token_ids": list(text)} for text in texts]
    outputs = llm.generate(asked, greedy(num_new), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def written_with_preemption(llm: LLM, texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What vLLM writes where all running requests lose their pages, three times."""
    engine = llm.llm_engine
    for number, text in enumerate(texts):
        engine.add_request(str(number), {"prompt_token_ids": list(text)}, greedy())
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
    return [found[number] for number in range(len(texts))]


def written_by_engine(
    model: Any, policy: Policy, texts: Sequence[Sequence[int]], num_new: int = NUM_NEW
) -> list[list[int]]:
    """What lacache's own engine writes, one text after the other."""
    engine = Engine.from_model(model, policy, max_sequences=1)
    found = []
    for text in texts:
        with engine.open() as session:
            found.append(list(session.generate(list(text), max_new_tokens=num_new)))
    return found


def written_slowly(
    model: Any, policy: Policy, text: Sequence[int], num_new: int = NUM_NEW
) -> list[int]:
    """What the slow reference writes."""
    schedule = policy.bind(model.config.num_hidden_layers)
    recent = getattr(schedule, "recent", 0)
    return slow_generate(model, torch.tensor([list(text)]), policy, recent, num_new)[0].tolist()

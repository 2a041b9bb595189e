"""The model type for lm-eval, compared with lm-eval's own `hf` and with slow references."""

import importlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import torch

from lacache.errors import ConfigError
from lacache.evals.policies import open_cache, parse_eval_policy
from lacache.integrations.lm_eval import main, register
from lacache.models.decoder import cache_argument
from tests.engine.tiny import save_tiny

CONTEXT = "In the beginning the cat sat on the mat and looked at the other cats. "
LONG = CONTEXT * 8
CONTINUATIONS = ["the end", "the dog barked at them all", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # lm-eval logs every step, and warns of its own defaults.
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def make(kind: str, folder: Path, **options: Any) -> Any:
    register()
    from lm_eval.api.registry import get_model

    return get_model(kind)(str(folder), device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    return make("hf", folder)


@pytest.fixture(scope="module")
def full(folder: Path) -> Any:
    return make("lacache", folder, policy="full")


def ask(*arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, tuple(arguments), 0)


LIKELIHOODS = [ask(c, t) for c in (LONG, CONTEXT, "", LONG + "And ") for t in CONTINUATIONS]
GENERATIONS = [
    ask(c, {"until": ["\n", "e"] if c is LONG else ["\n"], "max_gen_toks": 12})
    for c in (CONTEXT, LONG, "Once")
]


def test_the_full_cache_equals_hf(hf: Any, full: Any) -> None:
    theirs, ours = (lm.loglikelihood(LIKELIHOODS, disable_tqdm=True) for lm in (hf, full))
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=2e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    documents = [ask(LONG), ask(CONTEXT), ask(LONG * 2)]
    theirs, ours = (lm.loglikelihood_rolling(documents, disable_tqdm=True) for lm in (hf, full))
    assert ours == pytest.approx(theirs, rel=1e-5)
    theirs, ours = (lm.generate_until(GENERATIONS, disable_tqdm=True) for lm in (hf, full))
    assert ours == theirs
    assert len(set(ours)) > 1


def test_the_full_cache_is_cut_where_hf_is(folder: Path) -> None:
    models = [
        make("hf", folder, max_length=64),
        make("lacache", folder, policy="full", max_length=64),
    ]
    theirs, ours = (lm.loglikelihood(LIKELIHOODS, disable_tqdm=True) for lm in models)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=2e-4)
    theirs, ours = (lm.loglikelihood_rolling([ask(LONG)], disable_tqdm=True) for lm in models)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_greedy_continuations_are_recognized(full: Any) -> None:
    tokens = context = full.tok_encode(CONTEXT)
    for _ in range(6):
        logits = full.model(torch.tensor([tokens])).logits
        tokens = [*tokens, int(logits[0, -1].argmax())]
    generated = tokens[len(context) :]
    requests = [(("", ""), context, w) for w in (generated, [*generated[:3], 5, *generated[4:]])]
    greedy = [is_greedy for _, is_greedy in full._loglikelihood_tokens(requests, disable_tqdm=True)]
    assert greedy == [True, False]


OPTIONS: dict[str, dict[str, Any]] = {
    "ladder": {"budget": 24, "policy": "ladder:span=2:overlap=1"},
    "ladder of a share": {"budget": 0.25, "smallest": 16, "policy": "ladder:span=2"},
    "streaming": {"budget": 24, "policy": "streaming"},
    "int8": {"budget": 24, "policy": "streaming", "kv_dtype": "int8"},
    "dense": {"budget": 24, "policy": "streaming", "prefill": "dense"},
    "dense, first token too": {
        "budget": 24,
        "policy": "streaming",
        "prefill": "dense",
        "first_token": "dense",
    },
}


def slow_likelihood(lm: Any, name: str, context: list[int], continuation: list[int]) -> float:
    """Score a continuation one token at a time, with a new cache."""
    options = OPTIONS[name]
    capacity = options["budget"]
    if isinstance(capacity, float):
        capacity = max(16, -(-len(context) // 4))
    policy = parse_eval_policy(options["policy"])
    kv_dtype = options.get("kv_dtype")
    cache = open_cache(lm.model, policy, capacity, dense="dense" in name, kv_dtype=kv_dtype)
    first = context
    if "dense" in name:
        read = context if "too" in name else context[:-1]
        logits = cache.prefill(lm.model, torch.tensor([read]))
        first = context[len(read) :]
    for token in first:
        logits = cache.prefill(lm.model, torch.tensor([[token]]))
    total = 0.0
    for token in continuation:
        total += float(logits.log_softmax(-1)[0, token])
        logits = cache.prefill(lm.model, torch.tensor([[token]]))
    return total


@pytest.mark.parametrize("name", OPTIONS)
def test_bounded_caches_score_as_the_slow_reference(folder: Path, hf: Any, name: str) -> None:
    lm = make("lacache", folder, **OPTIONS[name])
    requests = [ask(CONTEXT, "the dog"), ask(CONTEXT + "And ", "x"), ask(CONTEXT, "y")]
    ours = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    pairs = [lm._encode_pair(*request.args) for request in requests]
    assert ours == pytest.approx([slow_likelihood(lm, name, *pair) for pair in pairs], abs=2e-3)
    theirs = [value for value, _ in hf.loglikelihood(requests, disable_tqdm=True)]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 0.01


def test_a_document_is_one_window_and_memory_is_bounded(folder: Path, tmp_path: Path) -> None:
    short = shutil.copytree(folder, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    lm = make("lacache", short, budget=40, policy="streaming:evict_batch=0.5")
    document = LONG * 2
    tokens = lm.tok_encode(document)
    assert len(tokens) > 3 * lm.model.config.max_position_embeddings
    assert lm.max_length > 1e9
    value = lm.loglikelihood_rolling([ask(document)], disable_tqdm=True)[0]
    cache = open_cache(lm.model, lm._policy, 40)
    logits = lm.model(
        torch.tensor([[lm.prefix_token_id, *tokens[:-1]]]), **cache_argument(lm.model, cache)
    ).logits[0]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    per_token = cache.report().bytes / cache.report().num_cached
    assert lm.get_model_info()["lacache_peak_bytes"] <= 40 * per_token


def test_generation_is_bounded_and_equals_that_of_the_cache(folder: Path) -> None:
    for name in ("ladder", "dense"):
        lm = make("lacache", folder, **OPTIONS[name])
        requests = [ask(CONTEXT * 2, {"until": [], "max_gen_toks": 58})]
        ours = lm.generate_until(requests, disable_tqdm=True)[0]
        tokens = torch.tensor([lm.tok_encode(CONTEXT * 2)])
        cache = open_cache(lm.model, lm._policy, 24, dense=name == "dense")
        if name == "dense":
            cache.prefill(lm.model, tokens[:, :-1])
            tokens = tokens[:, -1:]
        generated = []
        for _ in range(58):
            tokens = cache.prefill(lm.model, tokens).argmax(-1, keepdim=True)
            generated.append(int(tokens))
        assert ours == lm.tok_decode(generated)
        per_token = cache.report().bytes / cache.report().num_cached
        assert lm.get_model_info()["lacache_peak_bytes"] == 24 * per_token


def test_results_record_the_settings(folder: Path) -> None:
    info = make("lacache", folder, **OPTIONS["dense"]).get_model_info()
    assert info["lacache_policy"] == "streaming"
    assert (info["lacache_budget"], info["lacache_prefill"]) == ("24", "dense")
    assert info["lacache_first_token"] == "cache"
    assert json.dumps(info, default=str)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no budget was given"),
        ({"budget": 40, "policy": "full"}, "budget=40 cannot be given with policy 'full'"),
        ({"budget": 24, "policy": "lader"}, "policy='lader' must be one of"),
        ({"budget": 24, "batch_size": 8}, "batch_size=8 must be 1"),
        ({"budget": 24, "batch_size": "auto"}, "batch_size=auto must be 1"),
        ({"budget": 24, "kv_dtype": "int3"}, "kv_dtype='int3' must be None"),
        ({"budget": 24, "prefill": "thick"}, "prefill='thick'"),
        ({"budget": 24, "first_token": "dense"}, "needs a dense pass"),
        ({"budget": 24, "policy": "ladder:span=two"}, "span=two of policy 'ladder'"),
        ({"budget": 24, "span": 2}, "span=2 is no argument; write.*policy=ladder:span=15"),
        ({"budget": 24, "policy": "ladder", "evict_batch": 1}, "evict_batch=1 is no argument"),
        ({"budget": 24, "smallest": 0}, "smallest"),
    ],
)
def test_errors_come_before_a_model_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("lacache", Path("no such folder"), **options)


def test_register_is_idempotent() -> None:
    register()
    register()
    from lm_eval.api.registry import model_registry

    assert "lacache" in model_registry
    assert "hf" in model_registry


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """Write a task that reads a local file."""
    documents = [{"text": CONTEXT + str(i), "answer": "the"} for i in range(3)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (tmp_path / "tiny.yaml").write_text(
        "task: tiny_generation\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'documents.jsonl'}}}}}\n"
        "test_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['x'], max_gen_toks: 5}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    return tmp_path


def check_results(results: Any) -> None:
    assert results["config"]["lacache_policy"] == "ladder:span=2:overlap=1"
    assert results["n-samples"]["tiny_generation"]["effective"] == 3


def test_lm_eval_runs_a_task(folder: Path, task_folder: Path) -> None:
    register()
    lm_eval = importlib.import_module("lm_eval")
    tasks = importlib.import_module("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=str(task_folder), include_defaults=False)
    check_results(
        lm_eval.simple_evaluate(
            model="lacache",
            model_args=f"pretrained={folder},budget=24,policy=ladder:span=2:overlap=1,dtype=float32",
            tasks=["tiny_generation"],
            device="cpu",
            task_manager=manager,
        )
    )


@pytest.mark.slow
def test_the_command_line_of_lm_eval(
    folder: Path,
    task_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lm_eval.tasks import TaskManager

    # Else it reads the files of its thousands of tasks.
    quick = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", quick)
    out = task_folder / "out"
    arguments = ["run", "--model", "lacache", "--tasks", "tiny_generation", "--device", "cpu"]
    arguments += [
        "--model_args",
        f"pretrained={folder},budget=24,policy=ladder:span=2:overlap=1,dtype=float32",
    ]
    arguments += ["--include_path", str(task_folder), "--output_path", str(out)]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    main()
    assert "tiny_generation" in capsys.readouterr().out
    check_results(json.loads(next(out.rglob("results*.json")).read_text()))


def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        make("lacache", Path("nothing"))

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", refuse)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("error: no budget was given; try budget=512")

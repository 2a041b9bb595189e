"""Recipes: that they say what was published, and that each runs from end to end on a stand-in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lacache.common.records import Record, read_records
from lacache.errors import ConfigError
from lacache.evals.recipes import RECIPES
from lacache.evals.runs import Protocol, RunSpec
from tests.cli.conftest import Run, run
from tests.engine.tiny import END, VOCABULARY, tiny_tokenizer

__all__ = ["run"]

DENSE = Protocol("dense", "dense")


def bounded(name: str) -> list[RunSpec]:
    return [spec for spec in RECIPES[name].runs() if not spec.is_full]


def settings(name: str) -> set[tuple[str, str]]:
    return {(spec.budget, str(spec.policy)) for spec in bounded(name)}


def test_wikitext_is_the_released_command() -> None:
    assert settings("wikitext-16k") == {
        ("256", "streaming:evict_batch=1"),
        ("256", "paper:span=16"),
    }
    # --num_eval_tokens 16384: so many predictions, one token more.
    assert {(s.length, s.protocol) for s in bounded("wikitext-16k")} == {(16385, Protocol())}


def test_the_needle_is_the_released_command() -> None:
    assert settings("needle-llama3.2") == {
        ("0.5", "streaming:sinks=64:evict_batch=1"),
        ("0.5", "paper:span=14:sinks=64"),
    }
    runs = bounded("needle-llama3.2")
    assert {spec.length for spec in runs} == {i * 16384 for i in range(1, 9)}
    assert {spec.seed for spec in runs} == set(range(50))
    assert {(s.count, s.protocol) for s in runs} == {(11, DENSE)}
    assert len(RECIPES["needle-llama3.2"].runs()) == 8 * 50 * 3


def test_longbench_is_the_released_commands() -> None:
    pytest.importorskip("lm_eval")
    assert settings("longbench-llama2") == {
        ("1750", "streaming:sinks=128:evict_batch=1"),
        ("1750", "paper:span=16:sinks=128"),
        ("875", "streaming:sinks=128:evict_batch=1"),
        ("875", "paper:span=9:overlap=3:sinks=128"),
    }
    runs = bounded("longbench-llama2")
    lengths = {spec.task.name: spec.length - 3500 for spec in runs}
    assert len(lengths) == 21
    assert (lengths["longbench-qasper"], lengths["longbench-gov_report"]) == (128, 512)
    counts = {spec.task.name: spec.count for spec in runs}
    # LongBench has 4,750 rows.
    assert sum(counts.values()) == 4750
    assert {s.protocol for s in runs} == {DENSE}


def test_ruler_has_all_tasks() -> None:
    pytest.importorskip("lm_eval")
    runs = bounded("ruler-longchat")
    assert len({spec.task.name for spec in runs}) == 13
    assert {(spec.budget, spec.protocol, spec.length) for spec in runs} == {("0.5", DENSE, 16384)}


def test_every_recipe_keeps_its_bytes_equal() -> None:
    pytest.importorskip("lm_eval")
    for name in RECIPES:
        by_policy: dict[type, set[Any]] = {}
        for spec in bounded(name):
            about = (spec.task, spec.length, spec.budget, spec.count, spec.seed, spec.protocol)
            by_policy.setdefault(type(spec.policy), set()).add(about)
        streaming, ladder = by_policy.values()
        assert streaming == ladder


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Random models with as many layers as the recipes' models, so that their spans fit."""
    folders = {}
    for layers in (28, 32):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=END,
        )
        folders[layers] = tmp_path_factory.mktemp("model") / f"tiny{layers}"
        LlamaForCausalLM(config).save_pretrained(folders[layers])
        tiny_tokenizer().save_pretrained(folders[layers])
    return folders


def evaluated(run: Run, name: str, model: Path, out: Path, *options: object) -> list[Record]:
    result = run("eval", "recipe", name, "--model", model, "--out", out, "--threads", 1, *options)
    assert result.exit_code == 0, result.output
    failures = out.with_name("r.failures.log")
    assert not failures.exists(), failures.read_text()[:2000]
    return read_records(out)


def check(records: list[Record], runs: int) -> None:
    assert len(records) == runs
    assert {r["policy"]["name"] for r in records} == {"full", "streaming", "paper"}
    for record in records:
        if record["policy"]["name"] != "full":
            assert (record["prefill"], record["first_token"]) == ("dense", "dense")
            for sample in record["samples"]:
                # The dense pass does not count, and all after it keeps to the budget.
                assert (
                    sample["peak_bytes"]
                    <= sample["full_bytes"] * sample["capacity"] / (sample["prompt_tokens"])
                )


@pytest.mark.slow
def test_the_needle_on_a_stand_in(run: Run, stand_in: dict[int, Path], tmp_path: Path) -> None:
    options = ("--lengths", 600, "--samples", 3, "--seed", 7)
    records = evaluated(run, "needle-llama3.2", stand_in[28], tmp_path / "r.jsonl", *options)
    check(records, 3)
    depths = [sample["info"]["depth"] for sample in records[0]["samples"]]
    assert depths == [0.0, 0.5, 1.0]


def test_wikitext_on_a_stand_in(run: Run, stand_in: dict[int, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be or not to be, that is the question. " * 20)
    options = ("--tasks", f"ppl:text={text}", "--lengths", 280)
    records = evaluated(run, "wikitext-16k", stand_in[32], tmp_path / "r.jsonl", *options)
    assert [record["kind"] for record in records] == ["ppl"] * 3
    assert [record["capacity"] for record in records] == [None, 256, 256]
    assert len({record["perplexity"] for record in records}) == 3


@pytest.mark.slow
def test_ruler_on_a_stand_in(run: Run, stand_in: dict[int, Path], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    options = ("--tasks", "ruler-niah_single_1:max_new_tokens=3", "--lengths", 900, "--samples", 2)
    records = evaluated(run, "ruler-longchat", stand_in[32], tmp_path / "r.jsonl", *options)
    check(records, 3)


@pytest.mark.slow
def test_longbench_on_a_stand_in(run: Run, stand_in: dict[int, Path], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"input": "Who sat?", "context": "The cat sat on the mat. " * 40, "answers": ["the cat"]}
        for _ in range(2)
    ]
    (tmp_path / "qasper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"longbench-qasper:folder={tmp_path}:max_new_tokens=3"
    options = ("--tasks", task, "--lengths", 900, "--samples", 2, "--budget", 300)
    records = evaluated(run, "longbench-llama2", stand_in[32], tmp_path / "r.jsonl", *options)
    check(records, 4)
    spans = {record["policy"].get("span") for record in records}
    assert spans == {None, 16, 9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipe",), "must be 'recipe NAME' with one of ruler-longchat"),
        (("recipe", "pie"), "'recipe pie' must be"),
        (("pie",), "'pie' must be"),
        (("recipe", "wikitext-16k", "--quick"), "--quick is no recipe"),
        (("recipe", "wikitext-16k", "--tasks", "nothing"), "task 'nothing' must be one of"),
    ],
)
def test_what_is_no_recipe(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run("eval", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_device_that_is_not_there(run: Run, stand_in: dict[int, Path], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    options = ("--model", stand_in[28], "--out", out, "--threads", 1, "--device", "nowhere")
    result = run("eval", *options)
    assert result.exit_code == 2
    assert "device=nowhere must be a name that torch knows" in result.stderr


def test_a_dry_run_needs_no_model(run: Run) -> None:
    result = run("eval", "recipe", "needle-llama3.2", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["runs"]) == 1200


def test_a_dry_run_says_in_short_what_a_recipe_is(run: Run, tmp_path: Path) -> None:
    result = run("eval", "recipe", "needle-llama3.2", "--dry-run", "--out", tmp_path / "r.jsonl")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) < 20
    told = " ".join(result.stdout.split())
    assert "needle-llama3.2: A needle in up to 128K tokens, half of the cache" in told
    assert "model: meta-llama/Llama-3.2-3B-Instruct" in told
    assert "paper:span=14:sinks=64 at 0.5" in told
    # The three policies share a dense pass.
    tokens = sum(range(16384, 131073, 16384)) * 50 * 11
    assert f"passkey-grid 16,384 to 131,072 11 0 to 49 1,200 {tokens:,}" in told
    assert f"1,200 runs, about {tokens:,} tokens to prefill." in told
    other = run("eval", "recipe", "wikitext-16k", "--dry-run", "--tasks", "ppl", "--model", "a/b")
    assert "model: a/b" in other.stdout
    assert "meta-llama/Meta-Llama-3-8B, meta-llama/Llama-2-7b-hf" in " ".join(other.stdout.split())


def test_changes_must_be_possible() -> None:
    with pytest.raises(ConfigError, match="samples"):
        RECIPES["needle-llama3.2"].runs(samples=0)

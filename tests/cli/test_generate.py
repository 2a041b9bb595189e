import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import tokenization_utils_base

from lacache import Engine, LaCache, Streaming, stream
from lacache.engine.conversation import ChatTemplate
from lacache.engine.sampling import Sampling
from tests.cli.conftest import Run
from tests.engine.tiny import END, tiny_llama, tiny_tokenizer
from tests.models.tiny import write_gguf

MAIN = [sys.executable, "-c", "from lacache.cli import main; main()"]
GREEDY = ("--temperature", "0", "--dtype", "float32")


def generate_json(run: Run, *arguments: object, **options: Any) -> Any:
    result = run("generate", *arguments, *GREEDY, "--json", **options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def expected(ids: list[int], num_new: int, **options: Any) -> str:
    """The text that the library gives."""
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    cache = LaCache(model, **{"budget": 512} | options)
    tokens = list(stream(model, torch.tensor([ids]), cache, max_new_tokens=num_new))
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text


def test_the_text_is_that_of_the_library(run: Run, tiny: Path) -> None:
    ids = tiny_tokenizer()("the cat").input_ids
    text = expected(ids, 40)
    result = run("generate", "the cat", "--model", tiny, "-n", 40, *GREEDY)
    assert result.exit_code == 0
    assert result.stdout == text + "\n" * (not text.endswith("\n"))
    assert result.stderr.startswith(f"prefill: {len(ids)} tokens (")
    assert "decode: 40 (" in result.stderr
    assert result.stderr.count("\n") == 1


def test_json_is_one_object(run: Run, tiny: Path) -> None:
    record = generate_json(run, "the cat", "--model", tiny, "-n", 40, "--budget", 24)
    ids = tiny_tokenizer()("the cat").input_ids
    assert record["model"] == "tiny"
    assert record["text"] == expected(ids, 40, budget=24)
    assert record["prompt_tokens"] == len(ids)
    assert record["new_tokens"] == 40
    assert record["finish_reason"] == "length"
    assert record["prefill_seconds"] > 0
    assert record["cache"]["num_seen"] == len(ids) + 39
    assert record["cache"]["capacity"] == 24
    assert record["cache"]["num_cached"] <= 24
    assert record["cache"]["compactions"] > 0


def test_prompts_come_from_three_places(run: Run, tiny: Path, tmp_path: Path) -> None:
    text = "the é cat\n" * 20
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    common = ("--model", tiny, "-n", 10)
    by_argument = generate_json(run, text, *common)
    by_file = generate_json(run, "--file", tmp_path / "prompt.txt", *common)
    by_pipe = generate_json(run, *common, input=text)
    assert by_argument["text"] == by_file["text"] == by_pipe["text"]
    assert by_file["prompt_tokens"] == len(tiny_tokenizer()(text).input_ids)


def test_any_policy_reaches_the_cache(run: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.txt"
    path.write_text("groups:0-4@20@streaming:sinks=2:evict_batch=5 # one window\n")
    ids = tiny_tokenizer()("the cat").input_ids
    common = ("the cat", "--model", tiny, "-n", 40)
    record = generate_json(run, *common, "--policy", f"@{path}")
    assert record["cache"]["capacity"] == 20
    model = tiny_llama()
    cache = LaCache(model, 20, Streaming(sinks=2, evict_batch=5))
    tokens = stream(model, torch.tensor([ids]), cache, max_new_tokens=40)
    assert record["text"] == tiny_tokenizer().decode(list(tokens), skip_special_tokens=True)
    record = generate_json(run, *common, "--budget", 24, "--policy", "paper")
    paper = LaCache(model, 24, "paper")
    list(stream(model, torch.tensor([ids]), paper, max_new_tokens=40))
    # With positions by slot the engine stores unrotated and rotated keys.
    counts = {name: n for name, n in record["cache"].items() if "bytes" not in name}
    assert counts == {n: v for n, v in asdict(paper.report()).items() if "bytes" not in n}
    assert record["cache"]["bytes"] == Engine(model, 24, "paper").bytes_per_sequence
    assert record["cache"]["held_bytes"] == paper.report().bytes * 3 // 2


def test_settings_of_a_policy_reach_the_cache(run: Run, tiny: Path) -> None:
    prompt = "the cat sat on the mat and " * 10
    policy = "ladder:span=2:overlap=1:sinks=3:recent=5:evict_batch=4:unit=2:geometry=consecutive"
    windows = f"{policy}:window_layers=0+3-4"
    common = (prompt, "--model", tiny, "-n", 30, "--budget", 40, "--policy")
    record = generate_json(run, *common, windows)
    ids = tiny_tokenizer()(prompt).input_ids
    assert record["text"] == expected(ids, 30, budget=40, policy=windows)
    assert record["text"] != expected(ids, 30, budget=40, policy=policy)


@pytest.mark.parametrize("policy", ["streaming", "full"])
def test_other_policies(run: Run, tiny: Path, policy: str) -> None:
    prompt = "the cat " * 40
    budget = None if policy == "full" else 64
    arguments = () if policy == "full" else ("--budget", 64)
    record = generate_json(run, prompt, "--model", tiny, "-n", 30, "--policy", policy, *arguments)
    ids = tiny_tokenizer()(prompt).input_ids
    assert record["text"] == expected(ids, 30, policy=policy, budget=budget)
    assert record["cache"]["capacity"] == budget


def test_dense_prefill(run: Run, tiny: Path) -> None:
    prompt = "the cat sat " * 20
    common = (prompt, "--model", tiny, "-n", 20, "--budget", 32)
    dense = generate_json(run, *common, "--prefill", "dense")
    ids = tiny_tokenizer()(prompt).input_ids
    assert dense["text"] == expected(ids, 20, budget=32, prefill="dense")
    assert dense["text"] != generate_json(run, *common)["text"]


def test_chat_applies_the_chat_template(run: Run, tiny: Path) -> None:
    record = generate_json(run, "the cat", "--model", tiny, "-n", 20, "--chat")
    ids = ChatTemplate(tiny_tokenizer()).first("the cat")
    assert record["prompt_tokens"] == len(ids)
    assert record["text"] == expected(ids, 20)
    raw = generate_json(run, "the cat", "--model", tiny, "-n", 20)
    assert raw == {
        **generate_json(run, "the cat", "--model", tiny, "-n", 20, "--raw"),
        **{name: raw[name] for name in ("prefill_seconds", "decode_seconds")},
    }


def ending_prompt() -> tuple[str, int]:
    """A prompt after which the tiny model soon takes its end token, and after how many tokens."""
    import torch

    model, tokenizer = tiny_llama(eos_token_id=END), tiny_tokenizer()
    for number in range(200):
        prompt = f"the {number}"
        ids = torch.tensor([tokenizer(prompt).input_ids])
        cache = LaCache(model, 512)
        tokens = list(stream(model, ids, cache, max_new_tokens=20))
        if END in tokens:
            return prompt, tokens.index(END) + 1
    raise AssertionError("no prompt makes the model end its text; try another seed")


def test_an_end_token_ends_the_text_unless_ignored(run: Run, tiny_that_ends: Path) -> None:
    prompt, num_new = ending_prompt()
    common = (prompt, "--model", tiny_that_ends, "-n", 30)
    ended = generate_json(run, *common)
    assert (ended["finish_reason"], ended["new_tokens"]) == ("eos", num_new)
    assert "<|im_end|>" not in ended["text"]
    endless = generate_json(run, *common, "--ignore-eos")
    assert (endless["finish_reason"], endless["new_tokens"]) == ("length", 30)
    assert endless["text"].startswith(ended["text"])
    without_limit = generate_json(run, *common[:-1], -1, "--no-compile")
    assert (without_limit["finish_reason"], without_limit["new_tokens"]) == ("eos", num_new)


def test_zero_new_tokens_only_prefills(run: Run, tiny: Path) -> None:
    record = generate_json(run, "the cat", "--model", tiny, "-n", 0)
    assert (record["new_tokens"], record["text"]) == (0, "")
    assert record["cache"]["num_seen"] == record["prompt_tokens"]
    result = run("generate", "the cat", "--model", tiny, "-n", 0)
    assert result.stdout == ""


def test_a_seed_repeats_the_text(run: Run, tiny: Path) -> None:
    def text(seed: int) -> str:
        arguments = ("--temperature", 1, "--seed", seed, "--model", tiny, "-n", 30)
        result = run("generate", "the cat", *arguments)
        assert result.exit_code == 0
        return str(result.stdout)

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_repetition_penalty_reaches_the_sampler(run: Run, tiny: Path) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ids = tokenizer("the cat").input_ids
    cache = LaCache(model, 512)
    penalised = stream(
        model,
        torch.tensor([ids]),
        cache,
        max_new_tokens=40,
        sampling=Sampling(repetition_penalty=1.5),
    )
    common = ("the cat", "--model", tiny, "-n", 40)
    record = generate_json(run, *common, "--repetition-penalty", 1.5)
    assert record["text"] == tokenizer.decode(list(penalised), skip_special_tokens=True)
    assert record["text"] != expected(ids, 40)


def test_a_stop_string_ends_the_text_before_it(run: Run, tiny: Path) -> None:
    text = expected(tiny_tokenizer()("the cat").input_ids, 40)
    stop = text[12:15]
    common = ("generate", "the cat", "--model", tiny, "-n", 40, *GREEDY)
    record = json.loads(run(*common, "--json", "--stop", "never", "--stop", stop).stdout)
    assert record["text"] == text[: text.index(stop)]
    assert record["finish_reason"] == "stop"
    assert record["new_tokens"] < 40
    shown = run(*common, "--stop", stop).stdout
    assert shown.removesuffix("\n") == record["text"].removesuffix("\n")
    without = json.loads(run(*common, "--json", "--stop", "never").stdout)
    assert (without["text"], without["finish_reason"]) == (text, "length")


def test_a_prompt_longer_than_the_context_does_not_warn(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", warnings.append)
    result = run("generate", "a b" * 200, "--model", tiny, "-n", 1, "--budget", 64)
    assert result.exit_code == 0
    assert "prefill: 600 tokens" in result.stderr
    assert not warnings


@pytest.mark.slow
def test_ctrl_c_stops_an_endless_text_cleanly(tiny: Path) -> None:
    process = subprocess.Popen(
        [
            *MAIN,
            "generate",
            "the cat",
            "--model",
            tiny,
            "-n",
            "-1",
            *GREEDY,
            "--budget",
            "64",
            "--no-compile",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(300)
    process.send_signal(signal.SIGINT)
    rest, summary = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert summary.decode().startswith("prefill: ")
    assert summary.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--budget 0", "budget=0 must be at least 1 token"),
        ("--budget -7", "budget=-7 must be at least 1 token"),
        ("--budget 0.0", "budget=0.0 as a share must be in (0, 1]"),
        ("--budget 1.5", "budget=1.5 as a share must be in (0, 1]"),
        ("--budget 5", "budget=5 must be at least 8 tokens for this policy"),
        ("--budget 3KiB", "a budget of 3072 bytes holds 4 tokens of 640 bytes"),
        ("--budget lots", "budget='lots' must be a number of tokens, a share or"),
        ("--budget 5parsecs", "budget='5parsecs' must be a number of tokens, a share or"),
        ("--policy ladder:span=2:overlap=2", "overlap=2 must be below span=2"),
        ("--policy ladder:span=5", "span=5 must be below the number of layers 5"),
        ("--policy ladder:window_layers=0-9", "must be below the number of layers 5"),
        ("--policy ladder:window_layers=0/9", "window_layers=0/9 of policy 'ladder' cannot be"),
        ("--policy best", "policy='best' must be one of balanced, recall"),
        ("--policy full --budget 9", "budget=9 cannot be given with policy 'full'"),
        ("--policy streaming:span=2", "policy 'streaming' has no setting 'span'"),
        ("--policy @none.txt", "none.txt: No such file"),
        ("--prefill quick", "prefill='quick' must be 'chunked' or 'dense'"),
        ("--max-new-tokens -2", "max_new_tokens=-2 must be -1 (without limit) or at least 0"),
        ("--temperature -1", "temperature=-1.0 must be 0"),
        ("--top-p 0", "top_p=0.0 must be in (0, 1]"),
        ("--repetition-penalty 0", "repetition_penalty=0.0 must be from 0.01 to 100"),
        ("--stop=", "stop='' must be a string of at least 1 character"),
        ("--dtype int3", "dtype=int3 must be one of"),
        ("--threads 0", "threads=0 must be at least 1"),
    ],
)
def test_bad_options_end_in_one_line(run: Run, tiny: Path, arguments: str, message: str) -> None:
    result = run("generate", "the cat", "--model", tiny, *arguments.split())
    assert_one_line(result, message)


def assert_one_line(result: Any, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_empty_prompts_end_in_one_line(run: Run, tiny: Path, tmp_path: Path, prompt: str) -> None:
    (tmp_path / "empty").write_text(prompt)
    common = ("generate", "--model", tiny)
    assert_one_line(run(*common, prompt), "the prompt is empty")
    assert_one_line(run(*common, "--file", tmp_path / "empty"), "is empty")
    assert_one_line(run(*common, input=prompt), "standard input is empty")


@pytest.mark.parametrize("data", [b"\x7fELF\0\0\1", b"caf\xe9"])
def test_invalid_utf8_ends_in_one_line(run: Run, tiny: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "data").write_bytes(data)
    common = ("generate", "--model", tiny)
    assert_one_line(run(*common, "--file", tmp_path / "data"), "UTF-8")
    assert_one_line(run(*common, input=data), "standard input is")


def test_missing_files_end_in_one_line(run: Run, tiny: Path, tmp_path: Path) -> None:
    common = ("generate", "--model", tiny, "--file")
    assert_one_line(run(*common, tmp_path / "none"), "does not exist")
    assert_one_line(run(*common, tmp_path), "is a directory")
    assert_one_line(run(*common, tmp_path / "none", "text"), "two prompts were given")


def test_invalid_models_end_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACACHE_HOME", str(tmp_path / "home"))
    common = ("generate", "the cat", "--model")
    assert_one_line(run(*common, tmp_path / "none"), "does not exist")
    (tmp_path / "empty").mkdir()
    assert_one_line(run(*common, tmp_path / "empty"), "has no config.json")
    write_gguf(tmp_path / "cut.gguf")
    whole = (tmp_path / "cut.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    result = run(*common, tmp_path / "cut.gguf")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "get it again" in result.stderr.splitlines()[-1]


def test_a_model_that_is_not_causal_ends_in_one_line(run: Run, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    result = run("generate", "the cat", "--model", tmp_path / "bert")
    assert_one_line(result, "is not a causal language model")


def test_chat_without_a_template_ends_in_one_line(run: Run, tiny_without_chat: Path) -> None:
    result = run("generate", "the cat", "--chat", "--model", tiny_without_chat)
    assert_one_line(result, "has no chat template")


def test_int8_keys_values_and_weights(run: Run, tiny: Path) -> None:
    common = ("the cat", "--model", tiny, "-n", 20, "--budget", 24)
    whole = generate_json(run, *common)
    smaller = generate_json(run, *common, "--kv-dtype", "int8", "--weights", "int8")
    assert smaller["new_tokens"] == 20
    # Of float32 it is a quarter, and a scale for each token and head.
    assert smaller["cache"]["bytes"] < whole["cache"]["bytes"] / 2


@pytest.mark.parametrize("options", [["--policy", "full"], ["--prefill", "dense"]])
def test_int8_keys_and_values_without_an_engine(run: Run, tiny: Path, options: list[str]) -> None:
    common = ("the cat", "--model", tiny, "-n", 20, *options)
    whole, smaller = (
        generate_json(run, *common, *more)["cache"] for more in ((), ("--kv-dtype", "int8"))
    )
    assert smaller["num_cached"] == whole["num_cached"]
    assert smaller["bytes"] < whole["bytes"] / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kv-dtype", "int2"], "kv_dtype='int2' must be None"),
        (["--weights", "int3"], "weights='int3' must be one of model, file, int4, int8; try"),
        (["--weights", "file"], "weights='file' is for GGUF files"),
        (["--weights", "int8", "--policy", "full"], "--weights int8 needs the engine, and a full"),
        (["--weights", "int8", "--prefill", "dense"], "--weights int8 needs the engine, and de"),
    ],
)
def test_engine_options_without_an_engine_are_refused(
    run: Run, tiny: Path, options: list[str], message: str
) -> None:
    result = run("generate", "the cat", "--model", tiny, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "; " in result.stderr

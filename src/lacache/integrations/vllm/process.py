"""What the models of this process are served with.

vLLM builds layers of positions, attention layers and specs of memory at different times, and hands
its configuration to none of them; nor can they be told apart later, since vLLM shares layers of
positions between models. So a process serves one way only. (vLLM starts engines in processes of
their own, unless told otherwise.)
"""

import logging
import os
from typing import final

from vllm.config import VllmConfig, get_current_vllm_config_or_none

from lacache.errors import ConfigError
from lacache.integrations.vllm.refusals import refuse
from lacache.integrations.vllm.settings import Settings

_LOGGER = logging.getLogger("vllm.lacache")


@final
class Process:
    """The settings that the first model of this process was built with."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._settings: Settings | None = None

    def settings(self) -> Settings | None:
        """The settings of the first model; None where it is served without a ladder."""
        return self._settings

    def decide(self) -> Settings | None:
        """The settings of the model that vLLM builds now.

        Raises:
            ConfigError: they cannot work with this configuration of vLLM, or this process serves
                another model with other settings.
        """
        config = get_current_vllm_config_or_none()
        if config is None or config.model_config is None:
            return None
        settings = read(config)
        model = config.model_config.model
        is_other = self._model is not None and self._model != model
        # Models without a ladder may share a process, as they always could.
        if self._model is not None and (
            settings != self._settings or (is_other and settings is not None)
        ):
            raise ConfigError(
                f"this process serves {self._model} with {self._settings or 'no ladder'} and "
                f"cannot serve {model} with {settings or 'no ladder'}; use a process for each (do "
                "not set VLLM_ENABLE_V1_MULTIPROCESSING=0)"
            )
        if settings is not None and self._model is None:
            refuse(config)
            settings.schedule(config.model_config.get_total_num_hidden_layers())
            _LOGGER.info("%s for every sequence; prefix caching is off for them", settings)
        self._model, self._settings = model, settings
        return settings


def read(config: VllmConfig) -> Settings | None:
    """The settings in a configuration of vLLM, or in the environment."""
    given = config.additional_config
    return Settings.read(given if isinstance(given, dict) else {}, os.environ)


PROCESS = Process()

"""The settings of this process, and the vLLM configurations that they work with.

vLLM builds rotary layers, attention layers and cache specs at different times and gives its
configuration to none of them. They cannot be told apart later, as models share rotary layers. So
one process serves one model with one setting. (vLLM starts each engine in a process of its own,
unless VLLM_ENABLE_V1_MULTIPROCESSING=0.)
"""

import logging
import os
from collections.abc import Iterator
from typing import final

from vllm.config import VllmConfig, get_current_vllm_config_or_none
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from lacache.errors import ConfigError, UnsupportedOperationError
from lacache.integrations.vllm.settings import Settings
from lacache.policies import Schedule

_LOGGER = logging.getLogger("vllm.lacache")

ARCHITECTURES = (
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""Architectures that rotate keys and queries in every layer, as the last step before attention.

The plugin rotates later. Only a test against the model itself shows that the result is the same.
"""


@final
class Process:
    """Settings of the first model that this process built."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._settings: Settings | None = None
        self._schedule: Schedule | None = None

    def settings(self) -> Settings | None:
        """Return the settings of the first model; None without a ladder."""
        return self._settings

    def schedule(self) -> Schedule | None:
        """Return the schedule of the first model; None without a ladder."""
        return self._schedule

    def resolve(self) -> Settings | None:
        """Return the settings of the model that vLLM builds now; None without a ladder.

        Raises:
            ConfigError: the settings do not work with this configuration of vLLM, or the process
                already serves another model or other settings.
            UnsupportedOperationError: the configuration is refused.
        """
        config = get_current_vllm_config_or_none()
        if config is None or config.model_config is None:
            return None
        settings = read_settings(config)
        model = config.model_config.model
        is_other = self._model is not None and self._model != model
        # Models without a ladder may share a process, as in stock vLLM.
        if self._model is not None and (
            settings != self._settings or (is_other and settings is not None)
        ):
            raise ConfigError(
                f"this process serves {self._model} with {self._settings or 'no ladder'} and "
                f"cannot serve {model} with {settings or 'no ladder'}; use a process for each (do "
                "not set VLLM_ENABLE_V1_MULTIPROCESSING=0)"
            )
        if settings is not None and self._model is None:
            validate_config(config)
            num_layers = config.model_config.get_total_num_hidden_layers()
            self._schedule = settings.schedule(num_layers)
            _LOGGER.info("%s for every sequence; prefix caching is off for them", settings)
        self._model, self._settings = model, settings
        return settings


def read_settings(config: VllmConfig) -> Settings | None:
    """Read the settings from a configuration of vLLM, or else from the environment."""
    given = config.additional_config
    return Settings.read(given if isinstance(given, dict) else {}, os.environ)


PROCESS = Process()


def validate_config(config: VllmConfig) -> None:
    """Refuse a configuration of vLLM that would give wrong results or fail later.

    Raises:
        UnsupportedOperationError: with every reason.
    """
    reasons = list(_refusals(config))
    if reasons:
        raise UnsupportedOperationError(f"a ladder in vLLM does not support {'; '.join(reasons)}")


def _refusals(config: VllmConfig) -> Iterator[str]:
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        yield f"the platform {current_platform.device_name}; use a CPU, or CUDA (experimental)"
    attention = config.attention_config.backend
    if current_platform.is_cuda() and attention != AttentionBackendEnum.CUSTOM:
        yield (
            f"the attention backend {attention}; try --attention-backend CUSTOM, lacache's own "
            "(experimental)"
        )
    if model.use_mla:
        yield "latent attention (MLA), whose keys have no positions of their own"
    if model.is_hybrid:
        yield "a hybrid model, whose other layers hold states that a ladder cannot evict from"
    if model.is_encoder_decoder or model.runner_type != "generate":
        yield "a model that is no decoder"
    if model.is_multimodal_model:
        yield "a multimodal model, whose positions are not token counts"
    elif model.architecture not in ARCHITECTURES:
        yield (
            f"{model.architecture}, which is not tested; the tested ones are "
            f"{', '.join(ARCHITECTURES)}"
        )
    kinds = set(getattr(model.hf_text_config, "layer_types", None) or ())
    if model.get_sliding_window() is not None or kinds - {"full_attention"}:
        yield "layers with a sliding window"
    if getattr(model.hf_text_config, "layer_rope_theta", None) is not None:
        yield "rotary positions that differ by layer"
    if getattr(model.hf_text_config, "llama_4_scaling", None) is not None:
        yield "queries that are scaled by position, which is no token count here"
    if config.kv_transfer_config is not None:
        yield "a KV connector (--kv-transfer-config), which moves pages by token numbers"
    if config.speculative_config is not None:
        yield "speculative decoding, which takes tokens back"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism, which spreads a sequence over processes"
    if cache.cache_dtype != "auto" and cache.cache_dtype != str(model.dtype).removeprefix("torch."):
        yield (
            "keys and values of another type than the model's; try --kv-cache-dtype auto, not "
            f"{cache.cache_dtype}"
        )
    if cache.kv_sharing_fast_prefill:
        yield "--kv-sharing-fast-prefill, which skips tokens of a prompt"
    if config.lora_config is not None:
        yield "LoRA, which is not tested"

"""The settings of this process, and the vLLM configurations that they work with.

vLLM builds rotary layers, attention layers and cache specs at different times and gives its
configuration to none of them. They cannot be told apart later, as models share rotary layers. So
one process serves one model with one setting. (vLLM starts each engine in a process of its own,
unless VLLM_ENABLE_V1_MULTIPROCESSING=0.)
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import final

from vllm.config import VllmConfig, get_current_vllm_config_or_none
from vllm.distributed.parallel_state import get_pp_group, get_tensor_model_parallel_rank
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import AttentionSpec

from lacache.common.files import profiles_folder
from lacache.errors import ConfigError, UnsupportedOperationError
from lacache.integrations.vllm.kv_cache import PAGES_PER_BLOCK, BoundedSpec
from lacache.integrations.vllm.page_plan import find_page_size
from lacache.integrations.vllm.settings import Settings
from lacache.integrations.vllm.shards import all_shards
from lacache.integrations.vllm.worker_heads import WorkerHeads
from lacache.models.fingerprint import shape_hash
from lacache.policies import HeadProfile, Schedule, most_slots
from lacache.policies.head_profile import find_profile

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
        self._workers: dict[tuple[int, int], WorkerHeads] = {}
        self._identity = ""

    def settings(self) -> Settings | None:
        """Return the settings of the first model; None without any."""
        return self._settings

    def heads(self) -> WorkerHeads:
        """Return the KV heads of this worker, under a policy."""
        return self._workers[get_pp_group().rank_in_group, get_tensor_model_parallel_rank()]

    def page_size(self) -> int:
        """Return the slots in a page, the same in all workers."""
        return self._any().page_size

    def schedules(self) -> list[Schedule]:
        """Return the schedules of all head groups of the model."""
        return [group.arrays.schedule for group in self._any().groups]

    def spec(self, spec: AttentionSpec) -> BoundedSpec:
        """Return the spec of the pool, given what vLLM planned for a layer."""
        return BoundedSpec.from_full(spec, self.page_size(), self._most_pages(), self._identity)

    def blocks_per_sequence(self) -> int:
        """Return the blocks of vLLM's that a sequence takes in each worker."""
        return -(-self._most_pages() // PAGES_PER_BLOCK)

    def _any(self) -> WorkerHeads:
        return next(iter(self._workers.values()))

    def _most_pages(self) -> int:
        """Return the pages of a sequence in the worker that needs most."""
        return max(worker.num_pages for worker in self._workers.values())

    def resolve(self) -> Settings | None:
        """Return the settings of the model that vLLM builds now; None without any.

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
        # Models without settings may share a process, as in stock vLLM.
        if self._model is not None and (
            settings != self._settings or (is_other and settings is not None)
        ):
            raise ConfigError(
                f"this process serves {self._model} with {self._settings or 'no policy'} and "
                f"cannot serve {model} with {settings or 'no policy'}; use a process for each (do "
                "not set VLLM_ENABLE_V1_MULTIPROCESSING=0)"
            )
        if settings is not None and self._model is None:
            validate_config(config)
            self._plan(config, settings)
        self._model, self._settings = model, settings
        return settings

    def _plan(self, config: VllmConfig, settings: Settings) -> None:
        """Divide the policy's heads among workers, and their slots among pages."""
        model = config.model_config
        num_heads = (model.get_total_num_kv_heads(),) * model.get_total_num_hidden_layers()
        slot = 2 * model.get_head_size() * model.dtype.itemsize
        if settings.policy.needs_profile and settings.profile is None:
            settings = replace(settings, profile=_profile_by_shape(config, num_heads))
        bound = settings.bind(num_heads, slot)
        self._identity = hashlib.sha256(bound.identity.encode()).hexdigest()[:12]
        page_size = find_page_size(bound, least=32 if current_platform.is_cpu() else 16)
        # A sequence alone may have all of a step, whatever --long-prefill-token-threshold says.
        most_tokens = config.scheduler_config.max_num_batched_tokens
        parallel = config.parallel_config
        shards = all_shards(
            parallel.pipeline_parallel_size, parallel.tensor_parallel_size, num_heads
        )
        trained_length = model.hf_text_config.max_position_embeddings
        self._workers = {
            rank: WorkerHeads(bound.groups, shard, page_size, most_tokens, trained_length)
            for rank, shard in shards.items()
        }
        pages = self.blocks_per_sequence() * PAGES_PER_BLOCK
        claimed = pages * page_size * slot * len(shards)
        policy = most_slots([g.schedule for g in bound.groups], [g.num_heads for g in bound.groups])
        by = "" if settings.profile is None else f" (head profile of {settings.profile.model})"
        _LOGGER.info(
            "%s%s for every sequence, which takes %.2f MiB over all workers, %.2f times what the "
            "policy holds; prefix caching is off for them",
            settings,
            by,
            claimed / 2**20,
            claimed / (policy * slot),
        )


def _profile_by_shape(config: VllmConfig, num_heads: tuple[int, ...]) -> HeadProfile | None:
    """Return the head profile of a model with the same configuration, if there is one."""
    shape = shape_hash(config.model_config.hf_text_config.to_dict())
    profile = find_profile(f"{shape}-", (profiles_folder(),))
    if profile is not None and profile.num_heads == num_heads:
        return profile
    _LOGGER.warning(
        "no head profile of a model with this shape is known, so the policy works without knowing "
        "its retrieval heads; measure it once with: lacache calibrate --model %s",
        config.model_config.model,
    )
    return None


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
        raise UnsupportedOperationError(f"a policy in vLLM does not support {'; '.join(reasons)}")


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
        yield "a hybrid model, whose other layers hold states that a policy cannot evict from"
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

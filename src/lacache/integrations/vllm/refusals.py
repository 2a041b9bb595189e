"""What vLLM may be asked for beside a ladder, and what may not be."""

from collections.abc import Iterator

from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from lacache.errors import UnsupportedOperationError

ARCHITECTURES = (
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""Those that turn the keys and queries of every layer, as the last thing before attention.

The plugin turns them later, which only a test against the model itself can tell to be the same.
"""


def refuse(config: VllmConfig) -> None:
    """Refuse a configuration that would be wrong, or crash later.

    Raises:
        UnsupportedOperationError: with every reason.
    """
    reasons = list(_reasons(config))
    if reasons:
        raise UnsupportedOperationError(f"a ladder in vLLM cannot be had with {'; '.join(reasons)}")


def _reasons(config: VllmConfig) -> Iterator[str]:
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    if not (current_platform.is_cpu() or current_platform.is_cuda()):
        yield f"the platform {current_platform.device_name}, for which nothing is written"
    attention = config.attention_config.backend
    if current_platform.is_cuda() and attention != AttentionBackendEnum.CUSTOM:
        yield f"the attention {attention}; try --attention-backend CUSTOM, which is the ladder's"
    if model.use_mla:
        yield "latent attention (MLA), whose keys have no positions of their own"
    if model.is_hybrid:
        yield "a hybrid model, whose other layers keep states that no ladder thins"
    if model.is_encoder_decoder or model.runner_type != "generate":
        yield "a model that is no decoder"
    if model.is_multimodal_model:
        yield "a multimodal model, whose positions are not counted in tokens"
    elif model.architecture not in ARCHITECTURES:
        yield (
            f"{model.architecture}, for which it was never tested; it was for "
            f"{', '.join(ARCHITECTURES)}"
        )
    kinds = set(getattr(model.hf_text_config, "layer_types", None) or ())
    if model.get_sliding_window() is not None or kinds - {"full_attention"}:
        yield "layers with a sliding window"
    if getattr(model.hf_text_config, "layer_rope_theta", None) is not None:
        yield "positions that differ by layer"
    if getattr(model.hf_text_config, "llama_4_scaling", None) is not None:
        yield "queries that are scaled by position, which is not counted in tokens under a ladder"
    if config.kv_transfer_config is not None:
        yield "a KV connector (--kv-transfer-config), which moves pages by token numbers"
    if config.speculative_config is not None:
        yield "speculative decoding, which takes tokens back"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism, which spreads a sequence over processes"
    if cache.cache_dtype != "auto" and cache.cache_dtype != str(model.dtype).removeprefix("torch."):
        yield (
            f"keys and values in another type than the model's; try --kv-cache-dtype auto, not "
            f"{cache.cache_dtype}"
        )
    if cache.kv_sharing_fast_prefill:
        yield "--kv-sharing-fast-prefill, which skips tokens of a prompt"
    if config.lora_config is not None:
        yield "LoRA, which was never tried with it"

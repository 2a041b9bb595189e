"""The entry point that vLLM calls at the start of each of its processes."""

import logging
import os

import vllm

from lacache.errors import UnsupportedOperationError
from lacache.integrations.vllm.settings import VARIABLE, unsupported_reason

_LOGGER = logging.getLogger("vllm.lacache")
# vLLM may load its plugins again.
_IS_REGISTERED = False


def register() -> None:
    """Register the policies with vLLM. Models without settings for it are served as before.

    Raises:
        UnsupportedOperationError: LACACHE_VLLM is set and this release of vLLM is not supported.
    """
    global _IS_REGISTERED
    if _IS_REGISTERED:
        return
    reason = unsupported_reason(vllm.__version__)
    if reason is not None:
        if os.environ.get(VARIABLE):
            raise UnsupportedOperationError(reason)
        _LOGGER.warning("lacache is switched off: %s", reason)
        return
    if os.environ.get(VARIABLE):
        # vLLM keeps compiled models by its configuration, which lacks these settings.
        os.environ["VLLM_DISABLE_COMPILE_CACHE"] = "1"
        # Ray copies only named variables to its workers.
        named = os.environ.get("VLLM_RAY_EXTRA_ENV_VARS_TO_COPY", "").split(",")
        others = [name for name in named if name not in ("", VARIABLE)]
        os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] = ",".join([*others, VARIABLE])
    # Other releases of vLLM may lack what these import.
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from lacache.integrations.vllm import rotary
    from lacache.integrations.vllm.kv_cache import BoundedManager, BoundedSpec

    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(BoundedSpec, BoundedManager, BoundedSpec)
    backends = "lacache.integrations.vllm"
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{backends}.cpu.BoundedCpuBackend")
    if not AttentionBackendEnum.CUSTOM.is_overridden():
        register_backend(
            AttentionBackendEnum.CUSTOM,
            f"{backends}.cuda_experimental.ExperimentalCudaBackend",
        )
    rotary.register()
    _IS_REGISTERED = True

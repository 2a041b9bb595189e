"""What vLLM calls when it starts, in each of its processes."""

import logging
import os

import vllm

from lacache.errors import UnsupportedOperationError
from lacache.integrations.vllm.settings import VARIABLE
from lacache.integrations.vllm.versions import unsupported

_LOGGER = logging.getLogger("vllm.lacache")
# vLLM may load its plugins again.
_IS_REGISTERED = False


def register() -> None:
    """Tell vLLM of the ladder. A model without settings for it is served as before.

    Raises:
        UnsupportedOperationError: settings are given to a version of vLLM that is not supported.
    """
    global _IS_REGISTERED
    if _IS_REGISTERED:
        return
    reason = unsupported(vllm.__version__)
    if reason is not None:
        if os.environ.get(VARIABLE):
            raise UnsupportedOperationError(reason)
        _LOGGER.warning("lacache is switched off: %s", reason)
        return
    if os.environ.get(VARIABLE):
        # vLLM keeps compiled models by its configuration, where these settings are not.
        os.environ["VLLM_DISABLE_COMPILE_CACHE"] = "1"
        # Ray gives workers no variables but those that are named.
        named = os.environ.get("VLLM_RAY_EXTRA_ENV_VARS_TO_COPY", "").split(",")
        others = [name for name in named if name not in ("", VARIABLE)]
        os.environ["VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"] = ",".join([*others, VARIABLE])
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from lacache.integrations.vllm import rotary
    from lacache.integrations.vllm.manager import LadderManager
    from lacache.integrations.vllm.spec import LadderSpec

    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(LadderSpec, LadderManager, LadderSpec)
    register_backend(
        AttentionBackendEnum.CPU_ATTN, "lacache.integrations.vllm.cpu.LadderCpuBackend"
    )
    if not AttentionBackendEnum.CUSTOM.is_overridden():
        register_backend(
            AttentionBackendEnum.CUSTOM, "lacache.integrations.vllm.cuda.LadderCudaBackend"
        )
    rotary.register()
    _IS_REGISTERED = True

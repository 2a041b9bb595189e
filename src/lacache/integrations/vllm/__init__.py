"""LaCache as a plugin of stock vLLM (`docs/vllm.md`).

`settings` and `sub_chunks` import nothing of vLLM. `serving` replaces this process by
vLLM's server. vLLM itself loads the other modules, through `plugin`.
"""

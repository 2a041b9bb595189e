"""LaCache as a plugin of stock vLLM (`docs/vllm.md`).

`settings`, `sub_chunks`, `positions` and `schedule_arrays` import nothing of vLLM. `serving`
replaces this process by vLLM's server. vLLM itself loads the other modules, through `plugin`.
"""

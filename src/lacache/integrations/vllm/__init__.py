"""LaCache in stock vLLM, as a plugin (`docs/vllm.md`).

`settings`, `arrays`, `rounds` and `versions` are plain arithmetic; all else imports vLLM, and is
loaded by it alone.
"""

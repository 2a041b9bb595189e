"""The default policy in stock vLLM: three requests, each in 7 MiB at any length."""

from vllm import LLM, SamplingParams

from lacache.integrations.vllm.configuration import additional_config
from lacache.models import model_folder

if __name__ == "__main__":
    llm = LLM(
        str(model_folder()),
        additional_config=additional_config("default", budget=256),
        dtype="bfloat16",
        kv_cache_memory_bytes=2**28,
        max_model_len=4096,
        enforce_eager=True,
    )
    prompts = ["Once upon a time", "The sea was", "A short history of bread:"]
    sampling = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    for prompt, output in zip(prompts, llm.generate(prompts, sampling), strict=True):
        print("-", prompt + output.outputs[0].text)

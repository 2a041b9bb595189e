"""A number far back, at a quarter of the bytes: `MODEL`, or `MODEL window` for vLLM alone."""

import sys

from vllm import LLM, SamplingParams

from lacache.corpora import load_document
from lacache.integrations.vllm.configuration import additional_config
from lacache.models import model_folder

BUDGET = 512  # a quarter of the text's tokens
NEEDLE = "The number of the harbour gate is 48213."
QUESTION = "What is the number of the harbour gate? Answer with the number only."

if __name__ == "__main__":
    model, *rest = sys.argv[1:]
    text = load_document("shakespeare:hamlet").content[20_000:27_600]
    text = f"{text[:1400]}\n\n{NEEDLE}\n\n{text[1400:]}"
    if rest == ["window"]:
        kinds = 28 * ["sliding_attention"]  # layers of the 1.5B
        window = {"use_sliding_window": True, "sliding_window": BUDGET, "layer_types": kinds}
        way = {"hf_overrides": window}
    else:
        way = {"additional_config": additional_config(model, BUDGET)}
    llm = LLM(
        str(model_folder(model) or model),
        dtype="float32",
        kv_cache_memory_bytes=2**29,
        max_model_len=4096,
        max_num_batched_tokens=512,
        enforce_eager=True,
        **way,
    )
    message = {"role": "user", "content": f"{text}\n\n{QUESTION}"}
    (output,) = llm.chat([message], SamplingParams(temperature=0, max_tokens=12))
    print(len(output.prompt_token_ids), "tokens:", output.outputs[0].text.strip())

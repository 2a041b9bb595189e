"""A tiny random Llama that can chat, and its byte-level tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ċ", "Ċ")]
VOCABULARY = SPECIAL + ALPHABET + [left + right for left, right in MERGES]
END = SPECIAL.index("<|im_end|>")

# SmolLM2's, which brings a system prompt of its own.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(chat_template: str | None = CHATML) -> Any:
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        model_max_length=512,
    )
    fast.chat_template = chat_template
    return fast


def tiny_llama(*, seed: int = 0, eos_token_id: int | None = None) -> Any:
    """Five layers, float32, random; it speaks in bytes, greedily without end if it has no eos."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=eos_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    if eos_token_id is None:
        # The largest of hundreds of random logits is never as low as 0.
        model.lm_head.weight.data[END] = 0.0
    return model


def save_tiny(
    folder: Path, *, chat_template: str | None = CHATML, eos_token_id: int | None = None
) -> Path:
    """Write model and tokenizer as a directory that can be loaded."""
    tiny_llama(eos_token_id=eos_token_id).save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder

"""A tiny random Llama, as a model directory and as a GGUF file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAYERS, WIDTH, HEADS, KV_HEADS, INNER = 2, 16, 4, 2, 32
HALVES = {
    **dict.fromkeys(("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"), 2),
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), 1),
}
"""How many numbers in float16 a block begins with; Q2_K and Q6_K end with them."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "Ġ"), ("ĠĠ", "Ġ"), ("t", "h"), ("th", "e")]
VOCABULARY = SPECIAL + ALPHABET + [left + right for left, right in MERGES]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def save_directory(folder: Path, *, seed: int = 0, **options: object) -> Path:
    """Write a model directory with a tokenizer; `options` go to save_pretrained."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, **options)
    save_tokenizer(folder)
    return folder


def random_blocks(kind: str, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Random blocks of a GGUF type, uint8 [rows, bytes], whose numbers are near 1 / 16."""
    length, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = generator.integers(0, 256, (rows, columns // length, size), dtype=np.uint8)
    scale = {"Q6_K": 2**-14, "Q8_0": 2**-11}.get(kind, 2**-12 if kind.endswith("K") else 2**-7)
    number = HALVES.get(kind, 1)
    halves = generator.uniform(-scale, scale, (rows, columns // length, number)).astype(np.float16)
    place = slice(-2 * number, None) if kind in ("Q2_K", "Q6_K") else slice(0, 2 * number)
    blocks[..., place] = halves.view(np.uint8)
    return blocks.reshape(rows, -1)


def save_tokenizer(folder: Path) -> None:
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    ).save_pretrained(folder)


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    leave_out: str = "",
    head: bool = False,
    width: int = WIDTH,
    kinds: Sequence[str] = (),
) -> np.ndarray:
    """Write a GGUF file of a tiny Llama; returns its embeddings [V, width] in float32.

    Matrices have the types `kinds`, in turns, or else float32. With `head`, the head is not tied.
    """
    from gguf import GGUFWriter

    generator = np.random.default_rng(0)
    inner = 2 * width
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)

    kv_width = width // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(VOCABULARY), width)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (width,),
            f"blk.{layer}.attn_q": (width, width),
            f"blk.{layer}.attn_k": (kv_width, width),
            f"blk.{layer}.attn_v": (kv_width, width),
            f"blk.{layer}.attn_output": (width, width),
            f"blk.{layer}.ffn_norm": (width,),
            f"blk.{layer}.ffn_gate": (inner, width),
            f"blk.{layer}.ffn_up": (inner, width),
            f"blk.{layer}.ffn_down": (width, inner),
        }
    shapes["output_norm"] = (width,)
    if head:
        shapes["output"] = (len(VOCABULARY), width)
    weights = {
        name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    matrices = [name for name, weight in weights.items() if weight.ndim == 2]
    for name, weight in weights.items():
        if kinds and name in matrices:
            kind = kinds[matrices.index(name) % len(kinds)]
            blocks = random_blocks(kind, *weight.shape, generator)
            number = GGMLQuantizationType[kind]
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=number)
            weights[name] = dequantize(blocks, number)
        elif name != leave_out:
            writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights["token_embd"]

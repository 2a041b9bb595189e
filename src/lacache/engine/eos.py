"""Which tokens end a text."""

from typing import Any


def eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that the model's generation configuration and the tokenizer say end a text."""
    configured = model.generation_config.eos_token_id
    ids = set(configured) if isinstance(configured, list) else {configured}
    return frozenset(ids | {tokenizer.eos_token_id}) - {None}

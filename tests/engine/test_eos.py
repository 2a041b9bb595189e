from typing import Any

import pytest

from lacache.engine.stop import eos_token_ids
from tests.engine.tiny import END, tiny_llama, tiny_tokenizer


@pytest.mark.parametrize(
    ("configured", "tokenizer_end", "expected"),
    [(None, None, set()), (5, None, {5}), ([5, 6], "<|im_end|>", {5, 6, END}), (None, "t", {"t"})],
)
def test_both_say_what_ends_a_text(configured: Any, tokenizer_end: Any, expected: Any) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.generation_config.eos_token_id = configured
    tokenizer.eos_token = tokenizer_end
    named = {tokenizer.convert_tokens_to_ids(e) if isinstance(e, str) else e for e in expected}
    assert eos_token_ids(model, tokenizer) == named

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from lacache.models.start_tokens import start_tokens
from tests.engine.tiny import SPECIAL, tiny_tokenizer


def tokenizer_with(template: str) -> Any:
    """The tiny tokenizer, which puts a text in the place of $A."""
    tokenizer = tiny_tokenizer()
    numbers = [(token, number) for number, token in enumerate(SPECIAL)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=numbers
    )
    return tokenizer


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("$A", []),
        ("<|im_start|> $A", [1]),
        ("<|im_start|> $A <|im_end|>", [1]),
        ("$A <|im_end|>", []),
        ("<|endoftext|> <|im_start|> $A", [0, 1]),
    ],
)
def test_what_stands_before_a_text_and_not_after_it(template: str, expected: list[int]) -> None:
    assert start_tokens(tokenizer_with(template)) == expected

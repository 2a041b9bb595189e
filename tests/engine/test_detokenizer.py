from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lacache.engine.detokenizer import Detokenizer
from tests.engine.tiny import SPECIAL, VOCABULARY, tiny_tokenizer


def sentencepiece_like() -> Any:
    """Words begin with a mark that decoding strips at the start; unknown characters are bytes."""
    words = ["<s>", "▁", "▁the", "▁cat", "s", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(
        vocab={word: index for index, word in enumerate(words)},
        merges=[],
        byte_fallback=True,
        unk_token="<s>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"byte-level": tiny_tokenizer(), "sentencepiece": sentencepiece_like()}


class CountingTokenizer:
    """Remembers the longest list that it was asked to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.longest = 0

    def decode(self, tokens: list[int], **options: Any) -> str:
        self.longest = max(self.longest, len(tokens))
        text: str = self.tokenizer.decode(tokens, **options)
        return text


def streamed(tokenizer: Any, tokens: list[int]) -> list[str]:
    text = Detokenizer(tokenizer)
    return [*(text.push(token) for token in tokens), text.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_pieces_make_up_the_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    pieces = streamed(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert "\ufffd" not in "".join(pieces)


def test_a_text_comes_as_soon_as_it_is_certain() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    tokens = tokenizer("the é!").input_ids
    assert streamed(tokenizer, tokens) == ["the", " ", "", "é", "!", ""]


def test_an_unfinished_character_comes_with_the_flush() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    tokens = tokenizer("aé").input_ids[:-1]
    assert streamed(tokenizer, tokens) == ["a", "", "\ufffd"]


def test_spaces_survive_special_tokens() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    start, the, cat = tokenizer.convert_tokens_to_ids(["<s>", "▁the", "▁cat"])
    tokens = [start, the, *[start] * 100, cat, start, the]
    assert "".join(streamed(tokenizer, tokens)) == "the cat the"


@given(st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=200))
def test_any_tokens_give_text_in_bounded_memory(tokens: list[int]) -> None:
    counting = CountingTokenizer(TOKENIZERS["byte-level"])
    streamed(counting, tokens)
    assert counting.longest <= 32


@pytest.mark.parametrize("token", [SPECIAL[0], "Ã"])
def test_tokens_without_text_do_not_pile_up(token: str) -> None:
    counting = CountingTokenizer(TOKENIZERS["byte-level"])
    wordless = counting.tokenizer.convert_tokens_to_ids(token)
    before, after = counting.tokenizer("a b").input_ids[:2]
    pieces = streamed(counting, [before, *[wordless] * 1000, after])
    assert counting.longest <= 32
    assert pieces[0] == "a"
    assert "".join(pieces).endswith(" ")


def test_special_tokens_are_shown_on_request() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    text = Detokenizer(tokenizer, skip_special_tokens=False)
    assert text.push(0) == "<|endoftext|>"

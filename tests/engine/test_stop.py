from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lacache.engine.detokenizer import Detokenizer, StopStrings, find_eos_token_ids
from lacache.errors import ConfigError
from tests.engine.tiny import END, tiny_llama, tiny_tokenizer

# Few letters, so that stop strings begin, break off, overlap and contain each other.
TEXT = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def slow_cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What is given out of a whole text, and the stop string that ends it."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@st.composite
def pieces(draw: Any) -> list[str]:
    """A text in random pieces, some of them empty."""
    text = draw(TEXT)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    bounds = [0, *cuts, len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


# One inside of the other, in one piece: the inner one ends first.
@example(stops=["abab", "ba"], cut=["aabab"])
@example(stops=["ba", "aba"], cut=["aaba"])
@given(stops=STOPS, cut=pieces())
def test_any_cuts_equal_the_whole_text(stops: list[str], cut: list[str]) -> None:
    streamed = StopStrings(stops)
    given_out = "".join(map(streamed.push, cut)) + streamed.flush()
    assert (given_out, streamed.found) == slow_cut("".join(cut), stops)


@given(stops=STOPS, cut=pieces())
def test_no_more_is_held_than_may_begin_a_stop_string(stops: list[str], cut: list[str]) -> None:
    streamed, seen, given_out = StopStrings(stops), "", ""
    for piece in cut:
        seen += piece
        given_out += streamed.push(piece)
        if streamed.found is None:
            beginnings = {stop[:n] for stop in stops for n in range(len(stop))} | {""}
            held = max((b for b in beginnings if seen.endswith(b)), key=len)
            assert given_out == seen.removesuffix(held)


def test_a_text_comes_as_soon_as_it_is_certain() -> None:
    stops = StopStrings(["END"])
    assert [stops.push(piece) for piece in ["an E", "N", "E", "ND", "more"]] == [
        "an ",
        "",
        "EN",
        "",
        "",
    ]
    assert stops.found == "END"
    assert stops.flush() == ""


def test_a_beginning_that_breaks_off_comes_with_the_flush() -> None:
    stops = StopStrings(["END"])
    assert stops.push("the EN") == "the "
    assert (stops.flush(), stops.flush(), stops.found) == ("EN", "", None)


def test_nothing_piles_up_in_an_endless_text() -> None:
    stops = StopStrings(["aaab"])
    given_out = sum(len(stops.push("aaa")) for _ in range(10_000))
    assert given_out == 30_000 - 3
    assert stops.flush() == "aaa"


@pytest.mark.parametrize("stop", ["é!", "the é", "\n\n", "cat"])
def test_a_stop_string_spans_tokens(stop: str) -> None:
    tokenizer = tiny_tokenizer()
    said = "it saw the é!\n\n a cat"
    text, stops = Detokenizer(tokenizer), StopStrings([stop])
    given_out = "".join(stops.push(text.push(token)) for token in tokenizer(said).input_ids)
    given_out += stops.push(text.flush()) + stops.flush()
    assert given_out == said[: said.index(stop)]
    assert stops.found == stop


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ("END", r"stop='END' must be a list of strings; try stop=\['END'\]"),
        (None, "stop=None must be a list"),
        (["a", ""], "stop='' must be a string of at least 1 character"),
        ([b"a"], "stop=b'a' must be a string"),
        (["a"] * 65, "65 stop strings are given, and at most 64"),
        (["a" * 257], "has 257 characters, and at most 256"),
    ],
)
def test_stop_strings_that_cannot_be_are_refused(stops: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StopStrings(stops)


@pytest.mark.parametrize(
    ("configured", "tokenizer_end", "expected"),
    [(None, None, set()), (5, None, {5}), ([5, 6], "<|im_end|>", {5, 6, END}), (None, "t", {"t"})],
)
def test_eos_tokens_are_those_of_model_and_tokenizer(
    configured: Any, tokenizer_end: Any, expected: Any
) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.generation_config.eos_token_id = configured
    tokenizer.eos_token = tokenizer_end
    named = {tokenizer.convert_tokens_to_ids(e) if isinstance(e, str) else e for e in expected}
    assert find_eos_token_ids(model, tokenizer) == named

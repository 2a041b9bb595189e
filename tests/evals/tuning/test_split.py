from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.errors import InputError
from lacache.evals.tuning.split import Part, split_text
from tests.engine.tiny import tiny_tokenizer

TEXT = "".join(f"Line {i} of the text, which goes on.\n" for i in range(80))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return found


def test_no_character_is_in_both_parts(file: str) -> None:
    tokenizer = tiny_tokenizer()
    first, second = split_text(tokenizer, file, length=200, seed=5)
    assert first.characters == (0, len(TEXT) // 2)
    assert second.characters == (len(TEXT) // 2, len(TEXT))
    assert (first.seed, second.seed) == (5, 6)
    whole = ids(tokenizer, TEXT)
    for part in (first, second):
        start, stop = part.tokens
        read = tokenizer.decode(whole[start:stop])
        there = TEXT[slice(*part.characters)]
        assert read in there
        assert len(read) > 0.9 * len(there)


@given(
    first=st.integers(0, 50),
    tokens=st.integers(1, 500),
    length=st.integers(1, 100),
    seed=st.integers(0, 3),
)
def test_stretches_do_not_meet(first: int, tokens: int, length: int, seed: int) -> None:
    part = Part("compared", "text", (0, 1), (first, first + tokens), seed)
    starts = part.excerpts(length)
    assert len(starts) == tokens // length
    assert starts == part.excerpts(length)
    read = [token for start in starts for token in range(start, start + length)]
    assert len(set(read)) == len(read)
    assert all(first <= token < first + tokens for token in read)


def test_the_seed_sets_the_order() -> None:
    orders = {tuple(Part("x", "text", (0, 1), (0, 100), seed).excerpts(5)) for seed in range(9)}
    assert len(orders) > 1
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(0, 100, 5))}


def test_a_text_that_is_too_short_is_refused_with_a_length_that_works(file: str) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(
        InputError, match=r"too little text to choose: 8,032 are needed .*--length (\d+) or less"
    ) as told:
        split_text(tokenizer, file, length=2000, seed=0)
    length = int(str(told.value).split("--length ")[1].split()[0])
    assert len(split_text(tokenizer, file, length=length, seed=0)) == 2
    with pytest.raises(InputError, match="are needed"):
        split_text(tokenizer, file, length=length + 1, seed=0)
    (Path(file).parent / "two.txt").write_text("Two lines")
    with pytest.raises(InputError, match=r"try a longer text$"):
        split_text(tokenizer, str(Path(file).parent / "two.txt"), length=1024, seed=0)

from pathlib import Path

import pytest

from lacache.cli.terminal import read_prompt, validate_text
from lacache.errors import InputError


def test_an_argument_is_returned_unchanged() -> None:
    assert read_prompt(" a\n b ", None) == " a\n b "


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("é\n", encoding="utf-8")
    assert read_prompt(None, tmp_path / "text") == "é\n"


def test_two_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two prompts.*leave one of them out"):
        read_prompt("a", tmp_path / "text")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_argument_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        read_prompt(text, None)


def test_invalid_utf8_is_refused() -> None:
    argument = b"a\xffb".decode(errors="surrogateescape")
    with pytest.raises(InputError, match=r"the prompt is not UTF-8 .byte 1 is 0xff"):
        validate_text(argument, "the prompt")

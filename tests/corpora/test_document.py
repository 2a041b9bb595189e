"""A file is read as UTF-8 text, or refused in one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.corpora import load_document
from lacache.corpora.document import decode_text
from lacache.errors import InputError


def refuse(path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        load_document(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message


@pytest.mark.parametrize("kind", [str, Path])
def test_file_is_read(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffOne\r\ntwo\rthrée\n".encode())
    document = load_document(kind(path))
    assert document.content == "One\ntwo\nthrée\n"
    assert (document.name, document.source, document.licence) == (str(path), str(path), "unknown")


@given(st.text(st.characters(exclude_characters="\0\r\ufeff", exclude_categories=["Cs"])))
def test_text_survives_or_is_blank(content: str) -> None:
    if content.strip():
        assert decode_text(content.encode(), "it") == content
    else:
        with pytest.raises(InputError, match="it is empty"):
            decode_text(content.encode(), "it")


def test_file_with_the_name_of_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wikipedia").write_text("mine")
    assert load_document("./wikipedia").content == "mine"


def test_missing_file(tmp_path: Path) -> None:
    message = refuse(str(tmp_path / "none.txt"))
    assert "none.txt" in message
    assert "shakespeare, wikipedia" in message


def test_device() -> None:
    assert "is a device" in refuse(Path("/dev/zero"))


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refuse(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    for content in ("", " \n\t\n"):
        (tmp_path / "empty").write_text(content)
        assert "is empty" in refuse(tmp_path / "empty")


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x7fELF\x02\x01\x00\xff")
    assert "byte 6 is zero" in refuse(tmp_path / "binary")


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("drei Bäume".encode("latin-1"))
    assert "byte 6 is 0xe4" in refuse(tmp_path / "latin")
    (tmp_path / "wide").write_bytes("drei".encode("utf-16"))
    assert "UTF-16" in refuse(tmp_path / "wide")

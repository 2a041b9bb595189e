"""Articles of the English Wikipedia, from a dump in the test data of gensim's wheel."""

from __future__ import annotations

import bz2
import re
from pathlib import Path
from typing import TYPE_CHECKING, final
from xml.etree import ElementTree

from lacache.common.packages import package_folder, require_modules
from lacache.corpora.corpus import Corpus
from lacache.errors import InputError

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Node
    from mwparserfromhell.wikicode import Wikicode

_INSTALL = "pip install --no-deps gensim==4.4.0"
_DUMP = "enwiki-latest-pages-articles1*.bz2"

# From the first of these headings on, an article is lists of other pages.
_TAIL = re.compile(
    r"^=+ *(see also|notes?|(notes and )?references?|footnotes|citations|sources|bibliography"
    r"|further reading|external links)[^=\n]*=+ *$.*",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_NOT_TEXT = re.compile(r"^:?(file|image|category|media|[a-z]{2,3}):", re.IGNORECASE)
_DROPPED_TAGS = {"gallery", "imagemap", "math", "ref", "table", "timeline"}
# Templates that stand for words in a sentence: which of their arguments to keep.
_INLINE = {"convert": (1, 2), "lang": (2,), "nowrap": (1,), "quote": (1,)}
# Remains of broken markup and of dropped templates.
_REPAIRS = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, replacement, flags in (
        (r"\{\|.*?^\|\}", "", re.MULTILINE | re.DOTALL),
        (r"<ref\b.*?</ref>", "", re.DOTALL),
        (r"\{\{[^{}]*\}\}", "", 0),
        (r"^[ \t]*[|!{}].*$", "", re.MULTILINE),
        (r"\[\[[^\[\]]*\]\]", "", 0),
        (r"\[\[|\]\]|\[https?://\S*", "", 0),
        (r"'{2,}", "", 0),
        (r"\((?:\s*[,;])+\s*", "(", 0),
        (r"\(\s*\)", "", 0),
        (r"[ \t\xa0]+", " ", 0),
        (r" ([,.;:)])", r"\1", 0),
        (r" *\n *", "\n", 0),
        (r"\n{3,}", "\n\n", 0),
    )
)


@final
class Wikipedia(Corpus):
    """The 106 articles of the dump that are not redirects, in its order, by title."""

    name = "wikipedia"
    source = "package gensim 4.4.0 (a part of the English Wikipedia's dump of 2016)"
    licence = "CC BY-SA 3.0"

    def raw_documents(self) -> dict[str, str]:
        """Return the articles' wikitext by title."""
        folder = package_folder("gensim", gives="the corpus wikipedia", install=_INSTALL)
        data = folder / "test" / "test_data"
        dumps = sorted(data.glob(_DUMP))
        if not dumps:
            raise InputError(f"{data} holds no {_DUMP}; try: {_INSTALL}")
        try:
            return _read_dump(dumps[0])
        except (OSError, EOFError, ElementTree.ParseError) as error:
            raise InputError(f"{dumps[0]} is damaged ({error}); try: {_INSTALL}") from error

    def clean(self, title: str, raw: str) -> str:
        """Return the article's running text under its title; see `clean_wikitext`."""
        return f"{title}\n\n{clean_wikitext(raw)}"


def _read_dump(path: Path) -> dict[str, str]:
    articles: dict[str, str] = {}
    with bz2.open(path) as stream:
        for _, element in ElementTree.iterparse(stream):
            namespace, _, tag = element.tag.rpartition("}")
            if tag != "page":
                continue
            at = f"{namespace}}}" if namespace else ""
            if element.find(f"{at}redirect") is None and element.findtext(f"{at}ns") == "0":
                title = element.findtext(f"{at}title", "")
                articles[title] = element.findtext(f"{at}revision/{at}text", "")
            element.clear()
    return articles


def clean_wikitext(wikitext: str) -> str:
    """Return the running text of an article.

    Kept: paragraphs, headings, list items, the words of links. Dropped: tables, files and
    categories, references, formulas, comments, everything from "See also" or "References" on,
    and all templates but those few that stand for words, such as `{{convert|3|m}}`.

    Raises:
        MissingExtraError: mwparserfromhell is not installed.
    """
    require_modules("mwparserfromhell", why="cleaning the corpus wikipedia", extra="corpora")
    import mwparserfromhell

    text = _render(mwparserfromhell.parse(_TAIL.sub("", wikitext)))
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    return text.strip()


def _render(code: Wikicode | None) -> str:
    return "" if code is None else "".join(_render_node(node) for node in code.nodes)


def _render_node(node: Node) -> str:
    from mwparserfromhell import nodes

    match node:
        case nodes.Text():
            return str(node.value)
        case nodes.HTMLEntity():
            return str(node.normalize())
        case nodes.Heading():
            return "\n" + _render(node.title)
        case nodes.Wikilink():
            if _NOT_TEXT.match(str(node.title).strip()):
                return ""
            return _render(node.text or node.title)
        case nodes.ExternalLink():
            return _render(node.title)
        case nodes.Template():
            kept = _INLINE.get(str(node.name).strip().lower(), ())
            return " ".join(_render(node.get(n).value).strip() for n in kept if node.has(n))
        case nodes.Tag():
            tag = str(node.tag).strip().lower()
            if tag in _DROPPED_TAGS:
                return ""
            return "\n" if tag == "br" else _render(node.contents)
    # Comments, and the arguments of templates' own pages.
    return ""

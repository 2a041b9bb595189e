"""A collection of documents inside an installed package."""

import difflib
from abc import ABC, abstractmethod

from lacache.corpora.text import Text
from lacache.errors import InputError


class Collection(ABC):
    """Built-in texts that one package carries as data; nothing of it is imported.

    Attributes:
        name: What the collection is asked for by.
        source: The package that it is from.
        licence: Under which terms.
    """

    name: str
    source: str
    licence: str

    @abstractmethod
    def raw_documents(self) -> dict[str, str]:
        """Every document as it is stored, by title, in a fixed order.

        Raises:
            MissingExtraError: The package is not installed.
            InputError: Its data cannot be read.
        """

    @abstractmethod
    def clean(self, title: str, raw: str) -> str:
        """The plain text of one document, its title included."""

    def load(self, document: str | None = None) -> Text:
        """One document, or all of them with three line ends between.

        Raises:
            InputError: There is no such document.
        """
        raw = self.raw_documents()
        if document is None:
            content = "\n\n\n".join(self.clean(title, text) for title, text in raw.items())
            return Text(self.name, self.source, self.licence, content)
        if document not in raw:
            near = difflib.get_close_matches(document, raw, n=3, cutoff=0.5) or list(raw)[:3]
            raise InputError(
                f"text {self.name} has no document {document!r} among its {len(raw)}; "
                f"try {' or '.join(f'{self.name}:{title}' for title in near)}"
            )
        content = self.clean(document, raw[document])
        return Text(f"{self.name}:{document}", self.source, self.licence, content)

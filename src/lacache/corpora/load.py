"""Load a document by its name or path."""

from pathlib import Path

from lacache.common.packages import notice_once
from lacache.corpora.corpus import Corpus, Shakespeare
from lacache.corpora.document import Document, read_document
from lacache.corpora.wikipedia import Wikipedia
from lacache.errors import InputError

# One play, 52,000 tokens of SmolLM2's tokenizer, from a package that installs on any platform.
DEFAULT_DOCUMENT = "shakespeare:hamlet"

_CORPORA: dict[str, Corpus] = {corpus.name: corpus for corpus in (Shakespeare(), Wikipedia())}


def list_corpora() -> list[str]:
    """Return the names of the built-in corpora."""
    return sorted(_CORPORA)


def list_documents(corpus: str) -> list[str]:
    """Return the titles in a built-in corpus; `load_document(f"{corpus}:{title}")` loads one.

    Raises:
        InputError: There is no built-in corpus of that name, or its data cannot be read.
        MissingExtraError: Its package is not installed.
    """
    if corpus not in _CORPORA:
        raise InputError(
            f"no built-in corpus is called {corpus!r}; try {' or '.join(list_corpora())}"
        )
    return list(_CORPORA[corpus].raw_documents())


def load_document(name: str | Path) -> Document:
    """Load a document; the licence of a built-in one is printed on stderr.

    Args:
        name: A built-in corpus such as "wikipedia" (all its documents), one document of it such
            as "shakespeare:hamlet", or the path of a UTF-8 text file ("./wikipedia" for a file
            with the name of a corpus).

    Raises:
        InputError: There is no such document, or the file is binary, not UTF-8 or empty.
        MissingExtraError: The package of a built-in corpus is not installed.
    """
    if isinstance(name, str):
        corpus, colon, title = name.partition(":")
        if corpus in _CORPORA:
            document = _CORPORA[corpus].load(title if colon else None)
            notice_once(
                f"Text: {document.name} from {document.source}, licence: {document.licence}"
            )
            return document
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(
            f"text {str(name)!r} is neither a file nor one of {', '.join(list_corpora())}; "
            f"check the path, or try {DEFAULT_DOCUMENT}"
        )
    return read_document(path)

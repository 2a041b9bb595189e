"""Find a text by its name."""

from pathlib import Path

from lacache.common.notices import notice_once
from lacache.corpora.collection import Collection
from lacache.corpora.files import read_text_file
from lacache.corpora.shakespeare import Shakespeare
from lacache.corpora.text import Text
from lacache.corpora.wikipedia import Wikipedia
from lacache.errors import InputError

# One play, 52,000 tokens of SmolLM2's tokenizer, from a package that installs on any platform.
DEFAULT_TEXT = "shakespeare:hamlet"

_COLLECTIONS: dict[str, Collection] = {
    collection.name: collection for collection in (Shakespeare(), Wikipedia())
}


def list_texts() -> list[str]:
    """The names of the built-in texts."""
    return sorted(_COLLECTIONS)


def list_documents(name: str) -> list[str]:
    """The documents of a built-in text; `load_text(f"{name}:{document}")` reads one of them.

    Raises:
        InputError: There is no built-in text of that name, or its data cannot be read.
        MissingExtraError: Its package is not installed.
    """
    if name not in _COLLECTIONS:
        raise InputError(f"no built-in text is called {name!r}; try {' or '.join(list_texts())}")
    return list(_COLLECTIONS[name].raw_documents())


def load_text(name: str | Path) -> Text:
    """Load a text; of a built-in one the licence is said on stderr.

    Args:
        name: A built-in text such as "wikipedia", one document of it such as
            "shakespeare:hamlet", or the path of a UTF-8 text file ("./wikipedia" for a file
            that is called like a built-in one).

    Raises:
        InputError: There is no such text, or the file is binary, not UTF-8 or empty.
        MissingExtraError: The package that holds a built-in text is not installed.
    """
    if isinstance(name, str):
        collection, colon, document = name.partition(":")
        if collection in _COLLECTIONS:
            text = _COLLECTIONS[collection].load(document if colon else None)
            notice_once(f"Text: {text.name} from {text.source}, licence: {text.licence}")
            return text
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(
            f"text {str(name)!r} is neither a file nor one of {', '.join(list_texts())}; "
            f"check the path, or try {DEFAULT_TEXT}"
        )
    return read_text_file(path)

"""Long real texts: built-in ones that come with installed packages, and files."""

from lacache.corpora.load import DEFAULT_TEXT, list_documents, list_texts, load_text
from lacache.corpora.text import Text

__all__ = ["DEFAULT_TEXT", "Text", "list_documents", "list_texts", "load_text"]

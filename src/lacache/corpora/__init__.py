"""Corpora: long real documents from installed packages, and text files."""

from lacache.corpora.document import Document
from lacache.corpora.load import DEFAULT_DOCUMENT, list_corpora, list_documents, load_document

__all__ = ["DEFAULT_DOCUMENT", "Document", "list_corpora", "list_documents", "load_document"]

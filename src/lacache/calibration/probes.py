"""Probes: texts whose last part can only be predicted by looking far back.

Several kinds, because heads differ by what they look up: values by keys, words and numbers told
in running text, a number amid the same sentences over and over (which a model is tempted to go on
with), and sequences without any meaning. Held-out measurements use other kinds still.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError, InputError

KINDS = ("lines", "words", "numbers", "filler", "copies")
LEAST_HAY = 100
"""Tokens of running text, or of lines, that a probe needs at least."""

_FILLER = " The tide comes in. The boats lie still. Gulls cry over the pier. The tide goes out."
_WORDS = (
    "apple river stone candle window garden silver tiger copper forest mirror bridge hammer island "
    "pepper violin rocket basket anchor marble lemon falcon desert ladder button carpet dragon "
    "engine feather guitar harbor jacket kettle lantern magnet needle orange pencil quartz ribbon "
    "saddle temple umbrella velvet walnut yellow zebra castle meadow turtle"
)
_NAMES = (
    "Alice Boris Clara David Elena Felix Grace Henry Irene Jacob Karen Louis Maria Nathan Olivia "
    "Peter Quentin Rachel Simon Teresa Victor Wendy Xavier Yvonne Zachary"
)
_CITIES = (
    "Paris London Berlin Madrid Rome Vienna Prague Warsaw Athens Lisbon Dublin Oslo Helsinki Cairo "
    "Delhi Tokyo Lima Boston Chicago Denver"
)


@final
@dataclass(frozen=True)
class Probe:
    """A text with answers in it.

    Args:
        kind: one of `KINDS`.
        token_ids: the whole text.
        answers: where the answers are, as (start, stop) with 1 <= start < stop.
    """

    kind: str
    token_ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]

    def rows(self) -> list[int]:
        """The tokens whose logits predict the answers' tokens."""
        return [i - 1 for start, stop in self.answers for i in range(start, stop)]

    def targets(self) -> list[int]:
        """The answers' tokens."""
        return [self.token_ids[i] for start, stop in self.answers for i in range(start, stop)]


def make_probes(
    tokenizer: Any, haystack: str, *, length: int, per_kind: int, seed: int
) -> list[Probe]:
    """Probes of every kind in turn, the same for the same arguments.

    Args:
        tokenizer: of the model.
        haystack: running text to hide things in; starts at a place of its own in each probe.
        length: tokens of a probe: at most, and nearly, that many.
        per_kind: how many of each kind.
        seed: of what is drawn by chance.

    Raises:
        ConfigError: `length` or `per_kind` is too small.
        InputError: the haystack is too short.
    """
    validate_int("length", length, LEAST_HAY)
    validate_int("per_kind", per_kind, 1)
    words = haystack.split(" ")
    writer = _Writer(tokenizer, words, length)
    return [
        _MAKERS[kind](writer, random.Random(f"{kind} {seed} {number}"))
        for number in range(per_kind)
        for kind in KINDS
    ]


@final
@dataclass(frozen=True)
class _Writer:
    tokenizer: Any
    words: Sequence[str]
    length: int

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def hay(
        self, rng: random.Random, num_tokens: int, *, over_and_over: str | None = None
    ) -> list[int]:
        """Running text from a place drawn by chance, or the same text over and over."""
        self.validate_room(num_tokens)
        if over_and_over is not None:
            once = self.encode(over_and_over)
            return (once * (num_tokens // len(once) + 1))[:num_tokens]
        # A word is a token at least.
        start = rng.randrange(max(1, len(self.words) - num_tokens))
        ids = self.encode(" ".join(self.words[start : start + num_tokens]))
        if len(ids) < num_tokens:
            raise InputError(
                f"the text to hide probes in gives {len(ids)} tokens and {num_tokens} are needed; "
                "use a longer text or a smaller length"
            )
        return ids[:num_tokens]

    def validate_room(self, num_tokens: int) -> None:
        if num_tokens < LEAST_HAY:
            raise ConfigError(
                f"length={self.length} leaves {num_tokens} tokens to hide things in, and "
                f"{LEAST_HAY} are needed; try length={self.length + LEAST_HAY - num_tokens}"
            )

    def probe(
        self,
        kind: str,
        context: Sequence[int],
        asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    ) -> Probe:
        """The context, then each question with its answer."""
        ids = list(context)
        answers = []
        for question, answer in asked:
            ids += question
            answers.append((len(ids), len(ids) + len(answer)))
            ids += answer
        return Probe(kind, tuple(ids), tuple(answers))

    def told(
        self,
        kind: str,
        rng: random.Random,
        info: Sequence[tuple[str, str]],
        tell: str,
        ask: str,
        filler: str | None = None,
    ) -> Probe:
        """Facts hidden in running text or filler, each asked for once, in another order."""
        told = [self.encode(tell.format(key=key, value=value)) for key, value in info]
        asked = [(self.encode(ask.format(key=k)), self.encode(f" {v}")) for k, v in info]
        taken = sum(map(len, told)) + sum(len(q) + len(a) for q, a in asked)
        hay = self.hay(rng, self.length - taken, over_and_over=filler)
        rng.shuffle(asked)
        return self.probe(kind, _hidden(rng, hay, told, self.ends(hay)), asked)

    def ends(self, ids: Sequence[int]) -> list[int]:
        """Places right after the end of a sentence; every place, where there are none."""
        ends = [i + 1 for i, token in enumerate(ids) if "." in self.tokenizer.decode([token])]
        return ends or list(range(len(ids)))


def _hidden(
    rng: random.Random, hay: Sequence[int], told: Sequence[Sequence[int]], ends: Sequence[int]
) -> list[int]:
    """`told` spread evenly over the first 85 % of `hay`, each after the end of a sentence."""
    ids: list[int] = []
    last = 0
    for number, piece in enumerate(told):
        wanted = 0.85 * len(hay) * (number + rng.random()) / len(told)
        place = max(last, min(ends, key=lambda end: abs(end - wanted)))
        ids += [*hay[last:place], *piece]
        last = place
    return [*ids, *hay[last:]]


def _digits(rng: random.Random, count: int) -> str:
    return str(rng.randrange(10 ** (count - 1), 10**count))


def _lines(writer: _Writer, rng: random.Random) -> Probe:
    """Lines of keys and values; four keys come again."""
    context = writer.encode("Here is a list of keys and values.\n")
    again = writer.encode("\nThe same again, for some keys.\n")
    lines: list[tuple[str, str]] = []
    most = writer.length - len(again) - 4 * len(writer.encode("\numbrella-umbrella: 10000"))
    writer.validate_room(most - len(context))
    while True:
        key, value = "-".join(rng.sample(_WORDS.split(), 2)), _digits(rng, 5)
        line = writer.encode(f"{key}: {value}\n")
        if len(context) + len(line) > most:
            break
        if key not in dict(lines):
            context += line
            lines.append((key, value))
    # Not the last ones, which a window still sees.
    asked = rng.sample(lines[: int(0.85 * len(lines))], 4)
    return writer.probe(
        "lines",
        context + again,
        [(writer.encode(f"\n{key}:"), writer.encode(f" {value}")) for key, value in asked],
    )


def _words(writer: _Writer, rng: random.Random) -> Probe:
    """Words told in running text."""
    info = [
        (name, " ".join(rng.sample(_WORDS.split(), 2))) for name in rng.sample(_NAMES.split(), 4)
    ]
    ask = "\nWhat is the password of {key}? The password of {key} is"
    return writer.told("words", rng, info, " The password of {key} is {value}.", ask)


def _numbers(writer: _Writer, rng: random.Random) -> Probe:
    """Numbers told in running text."""
    info = [(city, _digits(rng, 6)) for city in rng.sample(_CITIES.split(), 4)]
    ask = "\nQuestion: what is the code for {key}? Answer: the code for {key} is"
    return writer.told("numbers", rng, info, " Remember: the code for {key} is {value}.", ask)


def _filler(writer: _Writer, rng: random.Random) -> Probe:
    """A number told amid the same sentences over and over."""
    info = [("locker", _digits(rng, 5))]
    tell = " Keep this in mind: the {key} opens with {value}."
    ask = " Which number opens the {key}? The {key} opens with"
    return writer.told("filler", rng, info, tell, ask, _FILLER)


def _copies(writer: _Writer, rng: random.Random) -> Probe:
    """Random tokens in running text; three runs of them come again and are to be gone on with."""
    special = set(writer.tokenizer.all_special_ids)
    usual = [i for i in range(len(writer.tokenizer)) if i not in special]
    runs = [rng.choices(usual, k=24) for _ in range(3)]
    hay = writer.hay(rng, writer.length - 2 * 3 * 24)
    context = _hidden(rng, hay, runs, list(range(len(hay))))
    rng.shuffle(runs)
    return writer.probe("copies", context, [(run[:6], run[6:]) for run in runs])


_MAKERS: dict[str, Callable[[_Writer, random.Random], Probe]] = {
    "lines": _lines,
    "words": _words,
    "numbers": _numbers,
    "filler": _filler,
    "copies": _copies,
}

"""Probes: sequences whose last part can only be predicted from distant tokens.

There are several kinds because heads differ by what they look up: values by keys, words and numbers
stated in running text, a number amid repeated sentences (which a model is tempted to continue),
random tokens, chains of several steps, the most common words, and several values of a key.
Held-out measurements use the tasks of `lacache eval`, whose words are others.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from lacache.common.validation import validate_int
from lacache.errors import ConfigError, InputError
from lacache.models.start_tokens import start_tokens

KINDS = ("lines", "words", "numbers", "filler", "copies", "chains", "counts", "several")
LEAST_HAY = 100
"""Least number of tokens of running text, or of lines, in a probe."""

# Four of the first 85 % of the lines are asked for.
_LEAST_LINES = 5
_ENDS = ".。"

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
    """A sequence of tokens with answers in it.

    Args:
        kind: one of `KINDS`.
        token_ids: the whole sequence.
        answers: ranges of the answers, as (start, stop) with 1 <= start < stop.
    """

    kind: str
    token_ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]

    def positions(self) -> list[int]:
        """Return the positions whose logits predict the tokens of the answers."""
        return [i - 1 for start, stop in self.answers for i in range(start, stop)]

    def targets(self) -> list[int]:
        """Return the tokens of the answers."""
        return [self.token_ids[i] for start, stop in self.answers for i in range(start, stop)]


def make_probes(
    tokenizer: Any, haystack: str, *, length: int, per_kind: int, seed: int
) -> list[Probe]:
    """Make probes of every kind in turn, the same for the same arguments.

    Args:
        tokenizer: the model's.
        haystack: running text to hide facts in; each probe starts at a random place of it.
        length: tokens of a probe, which has nearly and at most as many.
        per_kind: number of probes of each kind.
        seed: of all random choices.

    Raises:
        ConfigError: `length` or `per_kind` is too small.
        InputError: the haystack is too short.
    """
    validate_length(length, least_length(tokenizer, per_kind=per_kind, seed=seed))
    start = start_tokens(tokenizer)
    builder = _ProbeBuilder(tokenizer, start, haystack.split(), length - len(start))
    return [_MAKERS[kind](builder, rng) for kind, rng in _generators(per_kind, seed)]


def least_length(tokenizer: Any, *, per_kind: int, seed: int) -> int:
    """Return the least length for which all probes can be made.

    Args:
        tokenizer: the model's.
        per_kind: number of probes of each kind.
        seed: of all random choices.

    Raises:
        ConfigError: `per_kind` is too small.
    """
    validate_int("per_kind", per_kind, 1)
    start = start_tokens(tokenizer)
    builder = _ProbeBuilder(tokenizer, start, (), 0)
    least = 0
    for kind, rng in _generators(per_kind, seed):
        # What is missing does not depend on the length.
        try:
            _MAKERS[kind](builder, rng)
        except _NoRoomError as error:
            least = max(least, error.missing)
    return least + len(start)


def validate_length(length: int, least: int) -> None:
    """Raise ConfigError unless a length of probes is at least what `least_length` returns."""
    validate_int("length", length, 1)
    if length < least:
        raise ConfigError(
            f"length={length} must be at least {least} with this tokenizer, to leave room for text "
            f"around the facts; try length={least}"
        )


def _generators(per_kind: int, seed: int) -> Iterator[tuple[str, random.Random]]:
    """Yield every kind in turn, with the generator of its random choices."""
    for number in range(per_kind):
        for kind in KINDS:
            yield kind, random.Random(f"{kind} {seed} {number}")


@final
class _NoRoomError(Exception):
    """A length that is `missing` tokens too short for a probe."""

    def __init__(self, missing: int) -> None:
        super().__init__(missing)
        self.missing = missing


@final
@dataclass(frozen=True)
class _ProbeBuilder:
    tokenizer: Any
    start: Sequence[int]
    """What the tokenizer puts before every text."""
    words: Sequence[str]
    length: int
    """Tokens of a probe after the start."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def hay(self, rng: random.Random, num_tokens: int, repeated: str | None = None) -> list[int]:
        """Return running text from a random place on, or a repeated text."""
        self.validate_room(num_tokens)
        if repeated is not None:
            once = self.encode(repeated)
            return (once * (num_tokens // len(once) + 1))[:num_tokens]
        # A word is a token at least. After the end of the text comes its start.
        start = rng.randrange(len(self.words) or 1)
        words = [*self.words[start:], *self.words[:start]][:num_tokens]
        ids = self.encode(" ".join(words))
        if len(ids) < num_tokens:
            raise InputError(
                f"the document to hide probes in has {len(ids)} tokens and must have {num_tokens}; "
                "use a longer document or a smaller length"
            )
        return ids[:num_tokens]

    def validate_room(self, num_tokens: int, least: int = LEAST_HAY) -> None:
        if num_tokens < least:
            raise _NoRoomError(least - num_tokens)

    def probe(
        self,
        kind: str,
        context: Sequence[int],
        questions: Sequence[tuple[Sequence[int], Sequence[int]]],
    ) -> Probe:
        """Join the start, the context, then each question with its answer."""
        ids = [*self.start, *context]
        answers = []
        for question, answer in questions:
            ids += question
            answers.append((len(ids), len(ids) + len(answer)))
            ids += answer
        return Probe(kind, tuple(ids), tuple(answers))

    def recall(
        self,
        kind: str,
        rng: random.Random,
        facts: Sequence[str],
        questions: Sequence[tuple[str, str]],
        filler: str | None = None,
    ) -> Probe:
        """Hide facts in running text or filler; ask the questions, whose order is random."""
        stated = [self.encode(fact) for fact in facts]
        encoded = [(self.encode(text), self.encode(answer)) for text, answer in questions]
        taken = sum(map(len, stated)) + sum(len(q) + len(a) for q, a in encoded)
        hay = self.hay(rng, self.length - taken, filler)
        rng.shuffle(encoded)
        return self.probe(kind, _hide(rng, hay, stated, self.ends(hay)), encoded)

    def ends(self, ids: Sequence[int]) -> list[int]:
        """Return the places right after a sentence's end."""
        texts = [self.tokenizer.decode([token]) for token in ids]
        return [i + 1 for i, text in enumerate(texts) if any(end in text for end in _ENDS)]


def _hide(
    rng: random.Random, hay: Sequence[int], facts: Sequence[Sequence[int]], ends: Sequence[int]
) -> list[int]:
    """Spread facts evenly over the first 85 % of `hay`, after sentences where one ends near."""
    ids: list[int] = []
    last = 0
    apart = 0.85 * len(hay) / len(facts)
    for number, fact in enumerate(facts):
        wanted = apart * (number + rng.random())
        near = [end for end in ends if abs(end - wanted) <= apart]
        place = max(last, min(near, key=lambda end: abs(end - wanted), default=int(wanted)))
        ids += [*hay[last:place], *fact]
        last = place
    return [*ids, *hay[last:]]


def _digits(rng: random.Random, count: int) -> str:
    return str(rng.randrange(10 ** (count - 1), 10**count))


def _lines(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """Make lines of keys and values, then repeat four keys."""
    context = builder.encode("Here is a list of keys and values.\n")
    again = builder.encode("\nThe same again, for some keys.\n")
    lines: dict[str, str] = {}
    num_keys = len(_WORDS.split()) * (len(_WORDS.split()) - 1)
    most = builder.length - len(again) - 4 * len(builder.encode("\numbrella-umbrella: 10000"))
    room, taken = most - len(context), 0
    while len(lines) < num_keys:
        key, value = "-".join(rng.sample(_WORDS.split(), 2)), _digits(rng, 5)
        line = builder.encode(f"{key}: {value}\n")
        if len(lines) >= _LEAST_LINES and len(context) + len(line) > most:
            break
        if key not in lines:
            context += line
            lines[key] = value
            taken += len(line) if len(lines) <= _LEAST_LINES else 0
    builder.validate_room(room, max(LEAST_HAY, taken))
    # The last ones are within the window.
    asked = rng.sample([*lines.items()][: int(0.85 * len(lines))], 4)
    return builder.probe(
        "lines",
        context + again,
        [(builder.encode(f"\n{key}:"), builder.encode(f" {value}")) for key, value in asked],
    )


def _words(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """State words in running text."""
    names = rng.sample(_NAMES.split(), 4)
    values = [" ".join(rng.sample(_WORDS.split(), 2)) for _ in names]
    return builder.recall(
        "words",
        rng,
        [f" The password of {n} is {v}." for n, v in zip(names, values, strict=True)],
        [
            (f"\nWhat is the password of {n}? The password of {n} is", f" {v}")
            for n, v in zip(names, values, strict=True)
        ],
    )


def _numbers(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """State numbers in running text."""
    codes = [(city, _digits(rng, 6)) for city in rng.sample(_CITIES.split(), 4)]
    return builder.recall(
        "numbers",
        rng,
        [f" Remember: the code for {city} is {code}." for city, code in codes],
        [
            (f"\nQuestion: what is the code for {city}? Answer: the code for {city} is", f" {code}")
            for city, code in codes
        ],
    )


def _filler(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """State a number amid repeated sentences."""
    number = _digits(rng, 5)
    fact = f" Keep this in mind: the locker opens with {number}."
    question = " Which number opens the locker? The locker opens with"
    return builder.recall("filler", rng, [fact], [(question, f" {number}")], _FILLER)


def _copies(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """Hide three runs of random tokens in running text, then repeat them."""
    special = set(builder.tokenizer.all_special_ids)
    usual = [i for i in range(len(builder.tokenizer)) if i not in special]
    runs = [rng.choices(usual, k=24) for _ in range(3)]
    hay = builder.hay(rng, builder.length - 2 * 3 * 24)
    context = _hide(rng, hay, runs, range(len(hay)))
    rng.shuffle(runs)
    return builder.probe("copies", context, [(run[:6], run[6:]) for run in runs])


def _chains(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """Pass two parcels from hand to hand; ask through whose hands each went."""
    names = rng.sample(_NAMES.split(), 8)
    facts, asked = [], []
    for first, *others in (names[:4], names[4:]):
        parcel = _digits(rng, 5)
        facts.append(f" {first} fetched parcel {parcel}.")
        facts += [f" {a} gave a parcel to {b}." for a, b in pairwise([first, *others])]
        question = f"\nParcel {parcel} went through these hands: {first},"
        asked.append((question, f" {', '.join(others)}."))
    # One step of each parcel in turn.
    return builder.recall("chains", rng, [facts[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)], asked)


def _counts(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """List words, three of them often; ask for these after running text."""
    words = rng.sample(_WORDS.split(), 24)
    weights = [9, 6, 4] + [1] * 21
    ids = builder.encode("These things were counted:")
    question = builder.encode("\nMost often came, in this order:")
    room = builder.length - LEAST_HAY - len(question) - len(builder.encode(3 * " umbrella,"))
    builder.validate_room(room)
    end = [*builder.hay(rng, LEAST_HAY), *question]
    listed: list[str] = []
    while True:
        (word,) = rng.choices(words, weights)
        item = builder.encode(f" {word},")
        if len(ids) + len(item) > room:
            break
        listed.append(word)
        ids += item
    answer = ", ".join(word for word, _ in Counter(listed).most_common(3))
    return builder.probe("counts", ids, [(end, builder.encode(f" {answer}."))])


def _several(builder: _ProbeBuilder, rng: random.Random) -> Probe:
    """State three things of each of two people; ask for all of each."""
    names, things = rng.sample(_NAMES.split(), 2), rng.sample(_WORDS.split(), 6)
    facts = [f" {names[i % 2]} bought the {thing}." for i, thing in enumerate(things)]
    asked = [
        (f"\nEverything that {name} bought: the", f" {', the '.join(things[i::2])}.")
        for i, name in enumerate(names)
    ]
    return builder.recall("several", rng, facts, asked)


_MAKERS: dict[str, Callable[[_ProbeBuilder, random.Random], Probe]] = {
    "lines": _lines,
    "words": _words,
    "numbers": _numbers,
    "filler": _filler,
    "copies": _copies,
    "chains": _chains,
    "counts": _counts,
    "several": _several,
}

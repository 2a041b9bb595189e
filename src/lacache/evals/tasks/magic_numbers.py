"""Needles in the words of RULER (arXiv 2404.06654): magic numbers for words."""

import random

from lacache.evals.tasks.task import Question

NEW_TOKENS = 10
"""Seven digits, which many tokenizers spell one by one, and a space."""

WORDS = (
    "anchor", "basket", "candle", "dragon", "engine", "feather", "garden", "hammer", "island",
    "jacket", "kettle", "lantern", "mirror", "needle", "orchard", "pencil", "quarry", "river",
    "saddle", "temple", "umbrella", "violin", "window", "yacht", "zipper", "bottle", "castle",
    "desert", "forest", "glacier", "harbor", "magnet",
)  # fmt: skip


def draw(rng: random.Random, count: int) -> dict[str, str]:
    """Numbers of seven digits by word, both all different."""
    words = rng.sample(WORDS, count)
    numbers = rng.sample(range(1_000_000, 10_000_000), count)
    return dict(zip(words, map(str, numbers), strict=True))


def needle(word: str, number: str) -> str:
    """The sentence to find."""
    return f"One of the special magic numbers for {word} is: {number}."


def before(several: bool) -> str:
    """What the context starts with."""
    if several:
        return (
            "Some special magic numbers are hidden within the following text. Make sure to "
            "memorize them. I will quiz you about the numbers afterwards.\n"
        )
    return (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )


def question(word: str, number: str) -> Question:
    """The question after the context, or after another answer."""
    asked = f"the special magic number for {word} mentioned in the provided text"
    return Question(f"\nWhat is {asked}? {asked.capitalize()} is", (number,), NEW_TOKENS)

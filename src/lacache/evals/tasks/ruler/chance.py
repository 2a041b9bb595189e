"""Seeds for generators that draw from global random states."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def sample_seed(task: str, seed: int, index: int) -> int:
    """The seed of one sample: below 2**32, and unlike those of other samples, seeds and tasks."""
    return random.Random(f"{task} {seed} {index}").getrandbits(32)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Let Python's and numpy's global generators start at `seed`, and go on as before after."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)

"""Keep the libraries underneath from writing to the terminal."""

import contextlib
import logging
from collections.abc import Iterator

from huggingface_hub.utils import logging as hub
from transformers.utils import logging as library


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence the log lines of transformers and its hub library, and their bars unless `bars`.

    What is logged is not needed: missing weights and the like are read from the loading
    information instead.
    """
    had_bars, verbosity = library.is_progress_bar_enabled(), library.get_verbosity()
    hub_verbosity = hub.get_verbosity()
    if not bars:
        library.disable_progress_bar()
    library.set_verbosity(logging.CRITICAL)
    hub.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        hub.set_verbosity(hub_verbosity)
        if had_bars:
            library.enable_progress_bar()

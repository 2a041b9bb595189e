"""A progress bar for reading a prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Fewer tokens are read before a bar could be seen.
_LONG = 256


@final
class ReadingBar:
    """Moves on with each piece that was read, and goes at the end."""

    def __init__(self, progress: Progress, num_tokens: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=num_tokens)

    def advance(self, num_new: int) -> None:
        """That many more tokens were read."""
        self._progress.advance(self._task, num_new)

    def close(self) -> None:
        """Take the bar away, before other text is written."""
        self._progress.stop()


@contextmanager
def reading_bar(num_tokens: int) -> Iterator[ReadingBar]:
    """A bar on stderr; not shown for short prompts or where stderr is no terminal."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=num_tokens < _LONG or not console.is_terminal,
    )
    with progress:
        yield ReadingBar(progress, num_tokens)

"""A conversation without end: each turn costs only its own tokens."""

from collections.abc import Callable, Iterator
from typing import final

from lacache.cache.report import CacheReport
from lacache.engine.chat_template import ChatTemplate
from lacache.engine.generator import TextGenerator


@final
class Conversation:
    """Turns of a user and a model over one text; no turn is ever given to the model again.

    Args:
        open_text: makes a new text, such as `lambda: engine.open(sampling)`. What it runs on
            should have `template.num_pinned` sinks, so that the system prompt is never evicted.
        template: renders the turns.
        eos_token_ids: tokens that end a reply, beside the template's own.
    """

    def __init__(
        self,
        open_text: Callable[[], TextGenerator],
        template: ChatTemplate,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._open_text = open_text
        self._text = open_text()
        self._template = template
        self._end_token_ids = eos_token_ids | template.end_token_ids
        self._started = False

    def reply(
        self,
        message: str,
        *,
        max_new_tokens: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """Read a message and yield the tokens of the reply, without the one that ends it.

        The caller may stop after any token; the next message then follows what was yielded.

        Args:
            message: what the user says.
            max_new_tokens: how many tokens to yield at most; None is up to the end.
            on_progress: called with the number of the message's tokens after each piece.
        """
        turn = self._template.following if self._started else self._template.first
        self._started = True
        written = self._text.generate(
            turn(message),
            max_new_tokens=max_new_tokens,
            eos_token_ids=self._end_token_ids,
            on_progress=on_progress,
        )
        try:
            for token in written:
                if token in self._end_token_ids:
                    # The next turn brings the template's own end mark.
                    self._text.drop_last()
                else:
                    yield token
        finally:
            written.close()

    def report(self) -> CacheReport:
        """What the cache holds."""
        return self._text.report()

    def reset(self) -> None:
        """Start over, with the system prompt alone."""
        self._text.close()
        self._text = self._open_text()
        self._started = False

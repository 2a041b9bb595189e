"""A conversation without end, in which each turn prefills only its own tokens."""

from collections.abc import Callable, Iterator
from typing import final

from lacache.cache.report import CacheReport
from lacache.engine.chat_template import ChatTemplate
from lacache.engine.generator import TextGenerator


@final
class Conversation:
    """Turns of a user and a model in one sequence; no turn is ever prefilled again.

    Args:
        new_generator: opens a new sequence, such as `lambda: engine.open(sampling)`. Its policy
            should have `template.num_pinned` sinks, so that the system prompt is never evicted.
        template: renders turns.
        eos_token_ids: tokens that end a reply, besides those of the template.
    """

    def __init__(
        self,
        new_generator: Callable[[], TextGenerator],
        template: ChatTemplate,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._new_generator = new_generator
        self._generator = new_generator()
        self._template = template
        self._eos_token_ids = eos_token_ids | template.eos_token_ids
        self._started = False

    def reply(
        self,
        message: str,
        *,
        max_new_tokens: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """Prefill a message, and yield the tokens of the reply without the one that ends it.

        The caller may stop after any token; the next message then follows the yielded tokens.

        Args:
            message: the user's message.
            max_new_tokens: most tokens to yield; None is up to the end of the reply.
            on_progress: called after each prefilled chunk with its number of tokens.
        """
        turn = self._template.following if self._started else self._template.first
        self._started = True
        stream = self._generator.generate(
            turn(message),
            max_new_tokens=max_new_tokens,
            eos_token_ids=self._eos_token_ids,
            on_progress=on_progress,
        )
        try:
            for token in stream:
                if token in self._eos_token_ids:
                    # The next turn adds the template's own end token.
                    self._generator.drop_last()
                else:
                    yield token
        finally:
            stream.close()

    def report(self) -> CacheReport:
        """Return the report of the cache."""
        return self._generator.report()

    def reset(self) -> None:
        """Forget all turns; the next message begins with the system prompt again."""
        self._generator.close()
        self._generator = self._new_generator()
        self._started = False

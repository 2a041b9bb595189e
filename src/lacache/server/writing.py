"""A job that has a row."""

from collections.abc import Callable
from typing import Any, final

from lacache.engine.detokenizer import Detokenizer
from lacache.engine.engine import Engine
from lacache.server.job import Began, Finished, FinishReason, HasRead, Job, Piece, Token


@final
class Writing:
    """Reads the prompt of a job, writes, and tells of it; moved on by the steps of the engine.

    Args:
        job: what is wanted.
        engine: with a free row.
        tokenizer: of its model.

    Raises:
        LaCacheError: the text cannot be begun.
    """

    def __init__(self, job: Job, engine: Engine, tokenizer: Any) -> None:
        self.job = job
        opened = job.origin.open(engine)
        self._session = opened.session
        self._text = Detokenizer(tokenizer)
        self._stops = job.stops
        self._new: list[int] = []
        self._untold: list[Token] = []
        self._num_characters = 0
        self._is_reading = True
        job.tell(Began(self._session.num_seen, opened.num_reused))
        try:
            self._stream = self._session.generate(
                opened.unread, max_new_tokens=0, on_progress=lambda n: job.tell(HasRead(n))
            )
        except BaseException:
            self._session.close()
            raise

    @property
    def num_new(self) -> int:
        """Tokens that were written."""
        return len(self._new)

    def move_on(self) -> bool:
        """Tell of what the last step brought. Whether more may come.

        Raises:
            ModelError: the next token cannot be chosen.
        """
        if self._is_reading:
            if self._stream.finish_reason is not None:
                self._begin_to_write()
            return True
        if self._stream.error is not None:
            raise self._stream.error
        while self._stream.num_ready:
            token = next(self._stream)
            self._new.append(token)
            # The token that ends a text is no part of it, special or not.
            if token in self.job.eos_token_ids:
                continue
            text = self._text.push(token)
            self._untold.append(Token(token, self._num_characters, text, self._stream.logprobs))
            self._num_characters += len(text)
            self._tell(self._stops.push(text))
            if self._stops.found is not None:
                break
        if self._stops.found is None and self._stream.finish_reason is None:
            return True
        self._tell(self._stops.push(self._text.flush()) + self._stops.flush())
        return False

    def finish(self) -> Callable[[], None] | None:
        """Give the row back. What is left to do before the end is told, in another thread."""
        self._stream.close()
        try:
            # A turn that has not begun to be answered did not happen.
            if self._is_reading:
                return None
            return self.job.origin.when_written(self._session, self._new)
        finally:
            self._session.close()

    @property
    def end(self) -> Finished:
        """Of a text that was written to its end."""
        is_stop = self._stops.found is not None or self._stream.finish_reason == "eos"
        reason: FinishReason = "stop" if is_stop else "length"
        return Finished(reason, self.num_new, tuple(self._untold))

    def close(self) -> None:
        """Give the row back, and keep nothing."""
        self._stream.close()
        self._session.close()

    def _begin_to_write(self) -> None:
        self.job.origin.when_read(self._session)
        # Tokens are taken as they are chosen, and chosen while others are read or written.
        self._stream = self._session.generate(
            [],
            max_new_tokens=self.job.max_new_tokens,
            eos_token_ids=self.job.eos_token_ids,
            top_logprobs=self.job.top_logprobs,
            lookahead=1,
        )
        self._is_reading = False

    def _tell(self, text: str) -> None:
        if text:
            self.job.tell(Piece(text, tuple(self._untold)))
            self._untold.clear()

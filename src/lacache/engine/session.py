"""One sequence that is read and written in turns, for as long as it is open."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import TYPE_CHECKING, final

from torch import Tensor

from lacache.cache.report import CacheReport
from lacache.engine.request import Request
from lacache.engine.sampling import Sampler
from lacache.engine.token_stream import TokenStream
from lacache.engine.writer import Writer

if TYPE_CHECKING:
    from lacache.engine.engine import Engine


@final
class Session(Writer):
    """A sequence with a row of its own; made by `Engine.open`, ended by `close` or a `with` block.

    The text so far is what was given to `write` and what its streams yielded.
    """

    def __init__(self, engine: Engine, row: int, sampler: Sampler) -> None:
        self.engine = engine
        self.row = row
        self.sampler = sampler
        self.last: int | None = None
        """The newest token of the text, where the model has not read it yet."""
        self.logits: Tensor | None = None
        """The model's logits [V] for the next token, where it has read the newest one."""
        self.request: Request | None = None

    @property
    def num_seen(self) -> int:
        """Tokens that the model has read."""
        return self.engine.num_seen(self)

    def report(self) -> CacheReport:
        """What the session holds, and how much it has seen; bytes are those of its row."""
        return self.engine.report(self)

    def num_bytes(self) -> int:
        """Of its row, the same from the first to the last token."""
        return self.engine.row_bytes

    def write(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        max_new_tokens: int | None = None,
        eos_token_ids: Collection[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> TokenStream:
        """Add tokens to the text, and write on.

        The model reads and writes while tokens are taken, of this stream or of another.

        Args:
            tokens: new tokens [Q]; may be empty where there is a text to go on from.
            max_new_tokens: how many tokens to yield at most; None is without end, 0 only reads.
            eos_token_ids: tokens that end the stream; the one that did is yielded too.
            on_progress: called with the number of tokens after each segment that was read.

        Raises:
            InputError: nothing to read, or no tokens of this model.
            ConfigError: a negative number of tokens.
            UnsupportedOperationError: an earlier stream has not ended.
        """
        return self.engine.write(
            self,
            tokens,
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos_token_ids,
            on_progress=on_progress,
        )

    def score(
        self,
        tokens: Sequence[int] | Tensor,
        *,
        chunk: int = 64,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Read tokens, and tell how likely each was given what was held when it came.

        Args:
            tokens: [Q], Q >= 1; they belong to the text then.
            chunk: most tokens per forward, whose logits [chunk, V] are held at once.
            on_progress: called with the number of tokens after each forward.

        Returns:
            Negative log-likelihoods in nats [Q], float32; of an empty text [Q - 1], as nothing
            predicts its first token.

        Raises:
            InputError: no tokens, or none of this model.
            UnsupportedOperationError: a stream has not ended, or a token of it is unread.
        """
        return self.engine.score(self, tokens, chunk=chunk, on_progress=on_progress)

    def drop_last(self) -> None:
        """Take the newest token out of the text, where the model has not read it yet.

        The token that ended a reply is such a one, and a chat template brings its own.

        Raises:
            UnsupportedOperationError: a stream has not ended.
        """
        self.engine.drop_last(self)

    def fork(self) -> Session:
        """Another session, in a free row, that goes on from here by itself.

        Its random numbers go on from the same place too: written on alike, both say the same.

        Raises:
            UnsupportedOperationError: all rows are in use, or a stream has not ended.
        """
        return self.engine.fork(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write where the session stands to a file, whole or not at all; `Engine.load` goes on.

        Its size does not depend on the length of the text. It holds what the model keeps of the
        text, so keep it as private as the text.

        Args:
            path: of the file, in a folder that is there; another file there is replaced.

        Raises:
            InputError: it cannot be written; what was there is unchanged.
            UnsupportedOperationError: a stream has not ended.
        """
        self.engine.save(self, path)

    def close(self) -> None:
        """Give the row back; again and again does no harm."""
        self.engine.close(self)

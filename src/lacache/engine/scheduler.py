"""Which sequence reads or writes when (docs/adr/0012)."""

from collections import deque
from typing import final

from lacache.cache.static.row import Row
from lacache.engine.logprobs import token_logprobs
from lacache.engine.open_row import OpenRow
from lacache.engine.request import Request
from lacache.engine.runner import Runner
from lacache.engine.sampler import Sampler
from lacache.engine.token_stream import TokenStream
from lacache.errors import ModelError, UnsupportedOperationError


@final
class Scheduler:
    """Gives rows to texts, and lets each forward serve as many of them as it can.

    Args:
        runner: of the model.
        segment: most tokens of a prompt that are read at once; None is as many as fit.
    """

    def __init__(self, runner: Runner, segment: int | None) -> None:
        self.runner = runner
        self._segment = segment
        self._free = deque(range(len(runner.store.rows)))
        self._open: list[OpenRow] = []
        self._reading: deque[OpenRow] = deque()
        self._waiting: deque[tuple[Request, Sampler]] = deque()
        self._dropped: deque[Request] = deque()

    @property
    def num_open(self) -> int:
        """Rows in use."""
        return len(self._open)

    @property
    def num_free(self) -> int:
        """Rows that nobody has or waits for."""
        self._admit()
        return len(self._free)

    def open(self, sampler: Sampler) -> OpenRow:
        """A row for a new text.

        Raises:
            UnsupportedOperationError: all are in use.
        """
        self._admit()
        if not self._free:
            raise UnsupportedOperationError(
                f"all {len(self._open)} rows are in use; close a session, use submit, which waits, "
                "or make the engine with more rows"
            )
        return self._take_row(sampler)

    def submit(self, request: Request, sampler: Sampler) -> TokenStream:
        """Serve a request as soon as a row is free."""
        self._waiting.append((request, sampler))
        return self._stream(request)

    def write(self, opened: OpenRow, request: Request) -> TokenStream:
        """Serve a request of a text that has a row."""
        self._begin(opened, request)
        return self._stream(request)

    def step(self) -> bool:
        """Read one segment of one prompt, and write a token of every sequence that wants one.

        Returns:
            Whether there was anything to do.
        """
        self._admit()
        has_read = self._read_segment()
        has_written = self._write_tokens()
        has_chosen = self._choose_ahead()
        return has_read or has_written or has_chosen

    def row(self, opened: OpenRow) -> Row:
        """Where a text stands.

        Raises:
            UnsupportedOperationError: it has no row any more.
        """
        self._validate_open(opened)
        return self._row(opened)

    def validate_idle(self, opened: OpenRow) -> None:
        """Refuse to touch a text that has no row any more, or that is still being written.

        Raises:
            UnsupportedOperationError: either of them.
        """
        self._admit()
        self._validate_open(opened)
        if opened.request is not None and not opened.request.is_done:
            raise UnsupportedOperationError(
                "the session is still writing; take its stream to the end, or close the stream"
            )

    def close(self, opened: OpenRow) -> None:
        """Take a row back; again and again does no harm."""
        if opened not in self._open:
            return
        if opened.request is not None:
            opened.request.stopped_by = opened.request.stopped_by or "closed"
        self._stop_reading(opened)
        self._open.remove(opened)
        self.runner.store.clear(opened.index)
        self._free.append(opened.index)

    def _admit(self) -> None:
        """Take the rows of dropped streams back, and give free ones to those that wait."""
        while self._dropped:
            self._end(self._dropped.popleft())
        while self._waiting and self._free:
            request, sampler = self._waiting.popleft()
            self._begin(self._take_row(sampler), request)

    def _take_row(self, sampler: Sampler) -> OpenRow:
        opened = OpenRow(self._free.popleft(), sampler)
        self._open.append(opened)
        return opened

    def _stream(self, request: Request) -> TokenStream:
        return TokenStream(
            request,
            lambda: self._advance(request),
            lambda: self._end(request),
            lambda: self._dropped.append(request),
        )

    def _begin(self, opened: OpenRow, request: Request) -> None:
        opened.request = request
        if request.is_reading:
            self._reading.append(opened)
        else:
            request.end_if_long_enough()

    def _advance(self, request: Request) -> bool:
        """Bring a request nearer to its next token; whether there was anything to do."""
        opened = self._row_of(request)
        if opened is not None:
            self._row(opened).validate_whole()
            if request.is_writing and opened.logits is not None:
                self._choose(opened, request)
                return True
        return self.step()

    def _read_segment(self) -> bool:
        opened = next((o for o in self._reading if not self._row(o).is_moving), None)
        if opened is None:
            return False
        request = opened.request
        assert request is not None  # rows in this queue have one
        # The next segment is another's, even if this one fails.
        self._reading.remove(opened)
        self._reading.append(opened)
        room = self._row(opened).room()
        length = min(len(request.unread), room, self._segment or room)
        segment = request.unread[:length]
        logits = self.runner.read(opened.index, segment)
        request.unread = request.unread[length:]
        opened.last, opened.logits = None, logits
        opened.sampler.see(segment)
        if not request.is_reading:
            self._reading.remove(opened)
            request.end_if_long_enough()
            self._finish(opened, request)
        if request.on_progress is not None:
            request.on_progress(length)
        return True

    def _write_tokens(self) -> bool:
        writing = {
            opened.index: (opened, opened.last)
            for opened in self._open
            if opened.request is not None
            and opened.request.wants_logits
            and opened.last is not None
            # One that was interrupted half-way is refused to its own reader alone.
            and not self._row(opened).is_moving
        }
        if not writing:
            return False
        tokens = [0] * len(self.runner.store.rows)
        for row, (_, last) in writing.items():
            tokens[row] = last
        logits = self.runner.step(tokens, list(writing))
        for row, (opened, _) in writing.items():
            # A copy, since a compiled step may write over its output.
            opened.last, opened.logits = None, logits[row].clone()
        return True

    def _choose_ahead(self) -> bool:
        """Choose tokens that nobody has asked for yet."""
        has_chosen = False
        for opened in list(self._open):
            request = opened.request
            if request is None or not request.wants_choice or opened.logits is None:
                continue
            try:
                self._choose(opened, request)
                has_chosen = True
            except ModelError as error:
                # What cannot be chosen stays, and its own reader meets the error.
                request.error = error
        return has_chosen

    def _choose(self, opened: OpenRow, request: Request) -> None:
        assert opened.logits is not None  # asked before
        token = opened.sampler.choose(opened.logits[None])
        top = request.top_logprobs
        logprobs = None if top is None else token_logprobs(opened.logits, token, top)
        opened.last, opened.logits = token, None
        request.add(token, logprobs)
        self._finish(opened, request)

    def _finish(self, opened: OpenRow, request: Request) -> None:
        if request.stopped_by is not None and request.gives_row_back:
            self.close(opened)

    def _end(self, request: Request) -> None:
        """Stop a request before its end; what was not taken was not written."""
        request.cancel()
        self._waiting = deque(pair for pair in self._waiting if pair[0] is not request)
        opened = self._row_of(request)
        if opened is not None:
            self._stop_reading(opened)
            self._finish(opened, request)

    def _stop_reading(self, opened: OpenRow) -> None:
        if opened in self._reading:
            self._reading.remove(opened)

    def _row_of(self, request: Request) -> OpenRow | None:
        return next((opened for opened in self._open if opened.request is request), None)

    def _row(self, opened: OpenRow) -> Row:
        return self.runner.store.rows[opened.index]

    def _validate_open(self, opened: OpenRow) -> None:
        if opened not in self._open:
            raise UnsupportedOperationError(
                "the session is closed and its row belongs to another; open a new one"
            )

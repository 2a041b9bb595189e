"""The one thread that an engine belongs to."""

import queue
import threading
from typing import Any, final

from lacache.core.errors import LaCacheError
from lacache.engine.engine import Engine
from lacache.engine.text import TextStream
from lacache.engine.token_stream import TokenStream
from lacache.server.job import Failed, Finished, FinishReason, Job, Piece


class BusyError(Exception):
    """As many texts wait as may."""


class LateError(Exception):
    """A text took longer than it may."""


class ClosedError(Exception):
    """The server ends."""


@final
class _Writing:
    """A job whose text is read or written, or waits for a row."""

    def __init__(self, job: Job, stream: TokenStream, tokenizer: Any) -> None:
        self.job = job
        self.stream = stream
        self._text = TextStream(tokenizer)
        self._stops = job.stops
        self._num_new = 0

    def pass_on(self) -> bool:
        """Tell of the tokens that are there. Whether more may come."""
        while self.stream.num_ready:
            token = next(self.stream)
            self._num_new += 1
            # The token that ends a text is no part of it, special or not.
            is_end = token in self.job.eos_token_ids
            self._tell("" if is_end else self._stops.push(self._text.push(token)))
            if self._stops.found is not None:
                return self._finish("stop")
        if self.stream.stopped_by is None:
            return True
        return self._finish("stop" if self.stream.stopped_by == "eos" else "length")

    def _finish(self, reason: FinishReason) -> bool:
        self.stream.close()
        self._tell(self._stops.push(self._text.flush()) + self._stops.flush())
        self.job.tell(Finished("stop" if self._stops.found else reason, self._num_new))
        return False

    def _tell(self, text: str) -> None:
        if text:
            self.job.tell(Piece(text))


@final
class EngineThread:
    """Writes jobs side by side, as many as the engine has rows; the others wait in order.

    Args:
        engine: nobody else's from now on.
        tokenizer: of its model.
        waiting: most jobs that may wait for a row.
    """

    def __init__(self, engine: Engine, tokenizer: Any, *, waiting: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._most = engine.num_free + waiting
        self._news: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="lacache engine", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Jobs that are written or wait."""
        return self._open

    def submit(self, jobs: list[Job]) -> None:
        """Take jobs, all or none. From any thread.

        Raises:
            BusyError: too many wait.
            ClosedError: the server ends.
        """
        with self._lock:
            if self._is_closed:
                raise ClosedError
            if self._open + len(jobs) > self._most:
                raise BusyError
            self._open += len(jobs)
        for job in jobs:
            self._news.put(job)

    def close(self) -> None:
        """End every job, and the thread."""
        with self._lock:
            self._is_closed = True
        self._news.put(None)
        self._thread.join()

    def _run(self) -> None:
        writing: list[_Writing] = []
        while True:
            try:
                job = self._news.get(block=not writing)
            except queue.Empty:
                self._step(writing)
                continue
            if job is None:
                break
            self._start(job, writing)
        for one in writing:
            self._end(one.job, ClosedError())
            one.stream.close()
        while not self._news.empty():
            left = self._news.get()
            if left is not None:
                self._end(left, ClosedError())

    def _start(self, job: Job, writing: list[_Writing]) -> None:
        try:
            stream = self._engine.submit(
                job.tokens,
                max_new_tokens=job.max_new_tokens,
                sampling=job.sampling,
                eos_token_ids=job.eos_token_ids,
            )
        except LaCacheError as error:
            # Of a request that was not checked beforehand.
            self._end(job, error)
        else:
            writing.append(_Writing(job, stream, self._tokenizer))

    def _step(self, writing: list[_Writing]) -> None:
        try:
            self._engine.step()
        except Exception as error:
            # Whatever it was, whose text it was is not known.
            for one in writing:
                self._end(one.job, error)
                one.stream.close()
            writing.clear()
            return
        for one in list(writing):
            if one.job.is_given_up or one.job.is_late:
                one.stream.close()
                self._end(one.job, LateError())
                writing.remove(one)
            elif not one.pass_on():
                writing.remove(one)
                self._count_down()

    def _end(self, job: Job, error: Exception) -> None:
        job.tell(Failed(error))
        self._count_down()

    def _count_down(self) -> None:
        with self._lock:
            self._open -= 1

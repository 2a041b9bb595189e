"""The one thread that an engine belongs to."""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, final

from lacache.engine.engine import Engine
from lacache.errors import InputError
from lacache.server.errors import QueueFullError, RequestTimeoutError, ShutdownError
from lacache.server.job import Event, Failed, Job
from lacache.server.writing import Writing


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
        self.num_rows = engine.num_free
        """Texts that are written side by side."""
        self._most = self.num_rows + waiting
        self._news: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._writing: list[Writing] = []
        self._open = 0
        self._lock = threading.Lock()
        self._is_closed = False
        self._ends_at = math.inf
        self._saver = ThreadPoolExecutor(1, "lacache saver")
        self._thread = threading.Thread(target=self._run, name="lacache engine", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Jobs that are written, wait, or are still told of."""
        return self._open

    @property
    def num_writing(self) -> int:
        """Jobs that have a row."""
        return len(self._writing)

    @property
    def num_waiting(self) -> int:
        """Jobs that have no row yet."""
        return len(self._waiting) + self._news.qsize()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are written."""
        return self._thread.is_alive() and not self._is_closed

    def submit(self, jobs: list[Job]) -> None:
        """Take jobs, all or none. From any thread.

        Raises:
            InputError: they are more than could ever be taken.
            QueueFullError: too many wait.
            ShutdownError: the server ends.
        """
        if len(jobs) > self._most:
            raise InputError(
                f"n={len(jobs)} texts are more than the {self._most} that this server takes at "
                "once; ask for fewer"
            )
        with self._lock:
            if self._is_closed:
                raise ShutdownError
            if self._open + len(jobs) > self._most:
                raise QueueFullError
            self._open += len(jobs)
            for job in jobs:
                self._news.put(job)

    def forget(self, jobs: list[Job]) -> None:
        """Nobody is told of them any more; once for all that were taken. From any thread.

        Until then they count, so that readers who are slow bound what waits for them.
        """
        for job in jobs:
            job.give_up()
        with self._lock:
            self._open -= len(jobs)

    def close(self, seconds: float = 0) -> None:
        """Take no more jobs, and end those there are; what sessions have written so far is kept.

        Args:
            seconds: for jobs to come to their end by themselves.
        """
        with self._lock:
            self._is_closed = True
            self._ends_at = min(self._ends_at, time.monotonic() + seconds)
        self._news.put(None)
        self._thread.join()
        self._saver.shutdown()

    def _run(self) -> None:
        while self._goes_on():
            self._take_news()
            self._drop_unwanted()
            self._start_waiting()
            self._step()
        for one in list(self._writing):
            self._cut(one, ShutdownError())
        while not self._news.empty():
            left = self._news.get()
            if left is not None:
                self._waiting.append(left)
        for job in self._waiting:
            self._end(job, Failed(ShutdownError()))

    @property
    def _is_idle(self) -> bool:
        return not self._writing and not self._waiting and self._news.empty()

    def _goes_on(self) -> bool:
        return not (self._is_closed and (self._is_idle or time.monotonic() >= self._ends_at))

    def _take_news(self) -> None:
        """Waits where there is nothing to do."""
        block = self._is_idle
        with suppress(queue.Empty):
            while True:
                job = self._news.get(block=block)
                block = False
                # None only wakes the thread, which then sees that it is closed.
                if job is not None:
                    self._waiting.append(job)

    def _drop_unwanted(self) -> None:
        for job in list(self._waiting):
            if job.is_given_up or job.is_late:
                self._waiting.remove(job)
                self._end(job, Failed(RequestTimeoutError()))
        for one in list(self._writing):
            if one.job.is_given_up or one.job.is_late:
                self._cut(one, RequestTimeoutError())

    def _start_waiting(self) -> None:
        while self._waiting and self._engine.num_free:
            job = self._waiting.popleft()
            try:
                self._writing.append(Writing(job, self._engine, self._tokenizer))
            except Exception as error:
                self._end(job, Failed(error))

    def _step(self) -> None:
        try:
            self._engine.step()
        except Exception as error:
            # Whose text it was is not known.
            for one in list(self._writing):
                self._give_up(one, error)
            return
        for one in list(self._writing):
            try:
                goes_on = one.move_on()
            except Exception as error:
                self._give_up(one, error)
                continue
            if not goes_on:
                self._writing.remove(one)
                self._finish(one, one.end)

    def _give_up(self, one: Writing, error: Exception) -> None:
        self._writing.remove(one)
        # What failed may fail again; the other texts go on.
        with suppress(Exception):
            one.close()
        self._end(one.job, Failed(error, one.num_new))

    def _cut(self, one: Writing, error: Exception) -> None:
        self._writing.remove(one)
        self._finish(one, Failed(error, one.num_new))

    def _finish(self, one: Writing, event: Event) -> None:
        try:
            save = one.finish()
        except Exception as error:
            self._end(one.job, Failed(error, one.num_new))
            return
        if save is None:
            self._end(one.job, event)
        else:
            self._saver.submit(self._save, save, one, event)

    def _save(self, save: Callable[[], None], one: Writing, event: Event) -> None:
        try:
            save()
        except Exception as error:
            event = Failed(error, one.num_new)
        self._end(one.job, event)

    def _end(self, job: Job, event: Event) -> None:
        # Who hears of the end may come again at once.
        job.origin.close()
        job.tell(event)

"""The thread that an engine belongs to."""

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import final

from lacache.engine.engine import Engine
from lacache.errors import InputError
from lacache.server.completion import Completion, Failed, Finished
from lacache.server.errors import (
    QueueFullError,
    RequestAbortedError,
    RequestTimeoutError,
    ShutdownError,
)


@final
class EngineThread:
    """Runs completions on an engine; those without a batch slot wait in the engine's queue.

    Args:
        engine: owned by this thread from now on.
        waiting: most completions that may wait for a batch slot.
    """

    def __init__(self, engine: Engine, *, waiting: int) -> None:
        self._engine = engine
        self.scheduler = engine.scheduler
        """Of the engine; for completions, which use it in this thread alone."""
        self.num_slots = engine.num_free
        """Batch slots."""
        self._max_open = self.num_slots + waiting
        self._inbox: queue.SimpleQueue[Completion | None] = queue.SimpleQueue()
        self._active: list[Completion] = []
        self.num_open = 0
        """Completions that run, wait, or have a client that still reads them."""
        self._lock = threading.Lock()
        self._is_closed = False
        self._ends_at = math.inf
        self._saver = ThreadPoolExecutor(1, "lacache saver")
        self._thread = threading.Thread(target=self._run, name="lacache engine", daemon=True)
        self._thread.start()

    @property
    def num_bytes(self) -> int:
        """Bytes of the KV cache of all batch slots."""
        return self._engine.num_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the tokens that all sequences hold now."""
        return self._engine.held_bytes

    @property
    def num_running(self) -> int:
        """Batch slots in use."""
        return self.scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Completions that wait for a batch slot."""
        return self.scheduler.num_waiting + self._inbox.qsize()

    @property
    def is_alive(self) -> bool:
        """Whether the thread accepts completions."""
        return self._thread.is_alive() and not self._is_closed

    def validate_n(self, n: int) -> None:
        """Refuse a request for more completions than could ever be accepted.

        Raises:
            InputError: n is too large.
        """
        if n > self._max_open:
            raise InputError(
                f"n={n} must be at most {self._max_open}, the completions that this server accepts "
                f"at once; try n={self._max_open}"
            )

    def submit(self, completions: list[Completion]) -> None:
        """Accept all completions or none; from any thread.

        Raises:
            QueueFullError: too many wait.
            ShutdownError: the server is shutting down.
        """
        with self._lock:
            if self._is_closed:
                raise ShutdownError
            if self.num_open + len(completions) > self._max_open:
                raise QueueFullError
            self.num_open += len(completions)
            for completion in completions:
                self._inbox.put(completion)

    def abort(self, completions: list[Completion]) -> None:
        """Abort accepted completions that are not read any more; once, from any thread.

        Until then they count as open, so that slow readers bound the number of unread events. It
        changes nothing for those that have finished.
        """
        for completion in completions:
            completion.abort()
        with self._lock:
            self.num_open -= len(completions)

    def close(self, seconds: float = 0) -> None:
        """Accept no more completions, and end the running ones; their sessions are stored.

        Args:
            seconds: time for completions to end by themselves.
        """
        with self._lock:
            self._is_closed = True
            self._ends_at = min(self._ends_at, time.monotonic() + seconds)
        self._inbox.put(None)
        self._thread.join()
        self._saver.shutdown()

    def _run(self) -> None:
        while self._goes_on():
            self._receive()
            for completion in list(self._active):
                if completion.is_aborted:
                    self._finish(completion, RequestAbortedError())
                elif completion.is_expired:
                    self._finish(completion, RequestTimeoutError())
            self._step()
        for completion in list(self._active):
            self._finish(completion, ShutdownError())
        while not self._inbox.empty():
            left = self._inbox.get()
            if left is not None:
                left.emit_last(Failed(ShutdownError()))

    @property
    def _is_idle(self) -> bool:
        return not self._active and self._inbox.empty()

    def _goes_on(self) -> bool:
        return not (self._is_closed and (self._is_idle or time.monotonic() >= self._ends_at))

    def _receive(self) -> None:
        """Queue new completions in the engine; wait for one if there is nothing to do."""
        block = self._is_idle
        with suppress(queue.Empty):
            while True:
                completion = self._inbox.get(block=block)
                block = False
                # None only wakes the thread, which then sees that it is closed.
                if completion is not None:
                    self._active.append(completion)
                    completion.start()

    def _step(self) -> None:
        try:
            self.scheduler.step()
        except Exception as error:
            # Which sequence of the step caused it is unknown. Those that wait had no part in it.
            failed = [each for each in self._active if each.has_slot]
            for completion in failed or list(self._active):
                self._fail(completion, error)
            return
        for completion in list(self._active):
            try:
                goes_on = completion.advance()
            except Exception as error:
                self._fail(completion, error)
                continue
            if not goes_on:
                self._finish(completion, None)

    def _fail(self, completion: Completion, error: Exception) -> None:
        """End a completion whose state is not worth storing."""
        self._active.remove(completion)
        # What failed may fail again; the other completions go on.
        with suppress(Exception):
            completion.discard()
        completion.emit_last(Failed(error, completion.num_new))

    def _finish(self, completion: Completion, error: Exception | None) -> None:
        """Store the state of a completion, and end it; with an error if it ends early."""
        self._active.remove(completion)
        event: Finished | Failed = (
            completion.last_event() if error is None else Failed(error, completion.num_new)
        )
        try:
            save = completion.finish()
        except Exception as reason:
            completion.emit_last(Failed(reason, completion.num_new))
            return
        if save is None:
            completion.emit_last(event)
        else:
            self._saver.submit(self._save, save, completion, event)

    def _save(
        self, save: Callable[[], None], completion: Completion, event: Finished | Failed
    ) -> None:
        try:
            save()
        except Exception as error:
            event = Failed(error, completion.num_new)
        completion.emit_last(event)

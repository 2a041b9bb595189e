"""The only queue: which sequence is prefilled or decoded in which step (docs/adr/0012)."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, final

from torch import Tensor

from lacache.cache.sequence_state import SequenceState
from lacache.cache.static.sequence_tensors import restore_sequence
from lacache.engine.runner import Runner
from lacache.engine.sampler import SamplerState
from lacache.engine.sequence import Sequence
from lacache.engine.snapshot import Snapshot, take_snapshot, validate_snapshot
from lacache.errors import ModelError, UnsupportedOperationError


@final
class Batch(NamedTuple):
    """The work of one step: a chunk of one prompt, and a token of each decoding sequence."""

    prefilling: Sequence | None
    chunk: Tensor | None
    decoding: list[Sequence]


@final
class Scheduler:
    """Owns the queue and the batch slots; each step is schedule, run, sample.

    Args:
        runner: the model's runner, with one batch slot for each sequence that may run.
        chunk_size: most tokens of a prompt in one step.
    """

    def __init__(self, runner: Runner, chunk_size: int) -> None:
        self.runner = runner
        self._chunk_size = chunk_size
        self._free_slots = deque(range(len(runner.cache.sequences)))
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._prefilling: deque[Sequence] = deque()
        self._to_abort: deque[Sequence] = deque()

    @property
    def num_running(self) -> int:
        """Batch slots in use."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a batch slot."""
        return len(self._waiting)

    @property
    def num_free(self) -> int:
        """Batch slots that no sequence has or waits for."""
        leaving = set(self._to_abort)
        free = sum(each.batch_slot is not None and not each.keeps_slot for each in leaving)
        waiting = sum(each not in leaving for each in self._waiting)
        return max(0, len(self._free_slots) + free - waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it runs as soon as a batch slot is free."""
        self._waiting.append(sequence)

    def open(self, sequence: Sequence, snapshot: Snapshot | None = None) -> None:
        """Give a sequence a batch slot at once, for a session.

        Args:
            sequence: its sampler continues from the snapshot already.
            snapshot: one that `validate_snapshot` accepts; None starts an empty sequence.

        Raises:
            UnsupportedOperationError: all batch slots are in use.
            InputError: the snapshot has wrong tensors.
        """
        self._admit()
        if not self._free_slots:
            raise UnsupportedOperationError(
                f"all {len(self._running)} batch slots are in use; close a session, use submit, "
                "which waits, or make the engine with more max_sequences"
            )
        self._take_slot(sequence)
        if snapshot is not None:
            try:
                self._restore(sequence, snapshot)
            except BaseException:
                self.release(sequence)
                raise

    def replace(self, previous: Sequence, sequence: Sequence) -> None:
        """Run the next sequence of a session in the batch slot of the one before."""
        self._start(previous.followed_by(sequence))

    def step(self) -> bool:
        """Prefill one chunk of one prompt, and generate a token for every decoding sequence.

        Returns:
            Whether there was anything to do.
        """
        batch = self.schedule()
        if batch.prefilling is not None and batch.chunk is not None:
            self._prefill(batch.prefilling, batch.chunk)
        if batch.decoding:
            self._decode(batch.decoding)
        has_sampled = self._sample_ahead()
        return batch.prefilling is not None or bool(batch.decoding) or has_sampled

    def schedule(self) -> Batch:
        """Decide what the next step runs: the next prompt in turn, and all that decode."""
        self._admit()
        # A sequence whose last change was interrupted is refused to its own reader alone.
        whole = [each for each in self._running.values() if not self.state(each).is_changing]
        decoding = [each for each in whole if each.wants_logits]
        prefilling = next((each for each in self._prefilling if each in whole), None)
        if prefilling is None:
            return Batch(None, None, decoding)
        # The next chunk is another prompt's, even if this one fails.
        self._prefilling.remove(prefilling)
        self._prefilling.append(prefilling)
        assert prefilling.batch_slot is not None  # running sequences have one
        most = min(self._chunk_size, len(prefilling.to_prefill))
        length = self.runner.cache.chunk_length(prefilling.batch_slot, most)
        return Batch(prefilling, prefilling.to_prefill[:length], decoding)

    def advance(self, sequence: Sequence) -> bool:
        """Do what brings a sequence nearer to its next token; whether there was anything to do."""
        if sequence.batch_slot is not None:
            self.state(sequence).validate_complete()
            if sequence.is_decoding and sequence.logits is not None:
                self._sample(sequence)
                return True
        return self.step()

    def abort(self, sequence: Sequence) -> None:
        """End a sequence early; tokens that were not taken are discarded."""
        sequence.abort()
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._leave(sequence)

    def abort_later(self, sequence: Sequence) -> None:
        """Abort a sequence before the next step; safe at any time, within a step too."""
        self._to_abort.append(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free the batch slot of a sequence; idempotent."""
        batch_slot = sequence.batch_slot
        if batch_slot is None:
            return
        sequence.finish_reason = sequence.finish_reason or "closed"
        self._leave_prefill(sequence)
        del self._running[batch_slot]
        sequence.batch_slot = None
        self.runner.cache.clear(batch_slot)
        self._free_slots.append(batch_slot)

    def state(self, sequence: Sequence) -> SequenceState:
        """Return what the buffers hold of a sequence.

        Raises:
            UnsupportedOperationError: it has no batch slot any more.
        """
        if sequence.batch_slot is None:
            raise UnsupportedOperationError(
                "the session is closed and its batch slot is free for others; open a new one"
            )
        return self.runner.cache.sequences[sequence.batch_slot]

    def snapshot(self, sequence: Sequence) -> Snapshot:
        """Return a copy of a sequence's state; not amid a step, except in `on_progress`.

        Raises:
            UnsupportedOperationError: it has no batch slot, or its last change was interrupted.
        """
        self.state(sequence)
        assert sequence.batch_slot is not None  # else it was refused
        return take_snapshot(
            self.runner,
            sequence.batch_slot,
            sequence.sampler,
            last=sequence.last,
            logits=sequence.logits,
        )

    def validate_idle(self, sequence: Sequence) -> None:
        """Refuse to change a sequence that has no batch slot any more, or that is still running.

        Raises:
            UnsupportedOperationError: either of them.
        """
        self._admit()
        self.state(sequence)
        if not sequence.is_done:
            raise UnsupportedOperationError(
                "the session is still generating; take its stream to the end, or close the stream"
            )

    def _admit(self) -> None:
        """Abort sequences without a reader, and give free batch slots to those that wait."""
        while self._to_abort:
            self.abort(self._to_abort.popleft())
        while self._waiting and self._free_slots:
            sequence = self._waiting.popleft()
            self._take_slot(sequence)
            try:
                snapshot = sequence.find_snapshot() if sequence.find_snapshot else None
                if snapshot is not None:
                    validate_snapshot(snapshot, self.runner)
                    self._restore(sequence, snapshot)
                    # The settings and random numbers are the sequence's own.
                    seen = snapshot.sampler.seen
                    sequence.sampler.restore(SamplerState(generator=None, seen=seen))
                sequence.start()
                if sequence.on_start is not None:
                    sequence.on_start(0 if snapshot is None else snapshot.num_seen)
                self._start(sequence)
            except Exception as error:
                # Its own reader raises it; the other sequences go on.
                sequence.error, sequence.finish_reason = error, "error"
                self.release(sequence)

    def _take_slot(self, sequence: Sequence) -> None:
        batch_slot = self._free_slots.popleft()
        self._running[batch_slot] = sequence
        sequence.batch_slot = batch_slot

    def _restore(self, sequence: Sequence, snapshot: Snapshot) -> None:
        assert sequence.batch_slot is not None  # taken before
        restore_sequence(self.runner.cache, sequence.batch_slot, snapshot.tensors)
        sequence.last, logits = snapshot.last, snapshot.logits
        sequence.logits = None if logits is None else logits.to(self.runner.cache.device)

    def _start(self, sequence: Sequence) -> None:
        assert sequence.batch_slot is not None  # taken before
        self._running[sequence.batch_slot] = sequence
        if sequence.is_prefilling:
            self._prefilling.append(sequence)
        else:
            self._leave(sequence)

    def _prefill(self, sequence: Sequence, chunk: Tensor) -> None:
        assert sequence.batch_slot is not None  # scheduled sequences have one
        sequence.prefilled(chunk, self.runner.prefill(sequence.batch_slot, chunk))
        if not sequence.is_prefilling:
            self._leave(sequence)
        if sequence.on_progress is not None:
            sequence.on_progress(len(chunk))

    def _decode(self, sequences: Iterable[Sequence]) -> None:
        # A progress callback may have closed some, and changed their sessions.
        by_batch_slot = {
            each.batch_slot: each
            for each in sequences
            if each.batch_slot is not None and each.wants_logits
        }
        tokens = [0] * len(self.runner.cache.sequences)
        for batch_slot, sequence in by_batch_slot.items():
            assert sequence.last is not None  # it wants logits
            tokens[batch_slot] = sequence.last
        logits = self.runner.decode(tokens, list(by_batch_slot))
        for batch_slot, sequence in by_batch_slot.items():
            # A copy, since a compiled step may overwrite its output.
            sequence.decoded(logits[batch_slot].clone())

    def _sample_ahead(self) -> bool:
        """Sample tokens that no reader has asked for yet."""
        has_sampled = False
        for sequence in list(self._running.values()):
            if not sequence.wants_token:
                continue
            try:
                self._sample(sequence)
                has_sampled = True
            except ModelError as error:
                # The logits stay, and the sequence's own reader meets the error.
                sequence.error = error
        return has_sampled

    def _sample(self, sequence: Sequence) -> None:
        sequence.sample()
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence out of the prefill queue; free its batch slot if it has ended."""
        self._leave_prefill(sequence)
        if sequence.finish_reason is not None and not sequence.keeps_slot:
            self.release(sequence)

    def _leave_prefill(self, sequence: Sequence) -> None:
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)

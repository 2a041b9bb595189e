"""Snapshots: the state of a sequence apart from its engine, and as a file (docs/adr/0011)."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.static.sequence_tensors import (
    SequenceTensors,
    export_sequence,
    upgrade_tensors,
)
from lacache.engine.plan_upgrade import bind_plan
from lacache.engine.runner import Runner
from lacache.engine.sampler import Sampler, SamplerState
from lacache.engine.sampling import Sampling
from lacache.engine.snapshot_file import Header, read_snapshot, write_snapshot
from lacache.errors import ConfigError, InputError, LaCacheError
from lacache.policies import BoundPolicy, Groups, bind_policy, mean_capacity
from lacache.policies.grammar import parse_text
from lacache.policies.schedule import State, Timetable

_REMEDIES = {
    "dtype": "load the model in the snapshot's type",
    "kv_dtype": "make the engine with the snapshot's kv_dtype",
    "kv_format": "load the model with the configuration with which it was saved, or prefill its "
    "text again",
    "weights": "make the engine with the snapshot's weights",
    "model": "load the model with which it was saved",
    "positions": "load the model with the configuration with which it was saved",
    "policy": "make the engine with the snapshot's policy and budget, or with the exact "
    "policy=read_header(path)['policy']",
}
"""Entries of the header that must be equal, and what to do if one differs."""

_ABSENT = object()
_PLAN = "plan"
"""The entry of lacache 0.1 in place of the policy."""

_SEEN, _GENERATOR, _LOGITS = "sampler.seen", "sampler.generator", "logits"
_DIGITS = 40


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """State of a session; `Engine.resume` continues from it, in any engine of the same kind.

    Its size does not depend on the number of tokens. Made by `Session.snapshot`.
    """

    made_by: Header
    """What an engine must have in common with the one that took it."""
    num_seen: int
    """Tokens that the model had processed."""
    tensors: SequenceTensors
    """Keys, values and positions that the cache held."""
    sampling: Sampling
    sampler: SamplerState
    last: int | None
    """The newest token, if the model had not processed it."""
    logits: Tensor | None
    """Logits of the next token [V], on the CPU, if it had."""
    name: str = "the snapshot"
    """Name in error messages."""

    @property
    def kind(self) -> str:
        """`Engine.kind` of the engines that can resume it."""
        return _digest(self.made_by)

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        generator, logits = self.sampler.generator, self.logits
        rest = (self.sampler.seen, generator, logits)
        return sum(t.nbytes for t in (*self.tensors.values(), *rest) if t is not None)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file, whole or not at all.

        Args:
            path: of the file, in an existing folder; an existing file is replaced.

        Raises:
            InputError: it cannot be written; an existing file is unchanged.
        """
        generator = self.sampler.generator
        header = {
            **self.made_by,
            "sampling": asdict(self.sampling),
            "num_seen": self.num_seen,
            "last": self.last,
            # The size of the file does not depend on the number of tokens.
            "padding": " " * (_DIGITS - len(f"{self.num_seen}{self.last}")),
        }
        tensors = {**self.tensors, _SEEN: self.sampler.seen}
        tensors |= {} if generator is None else {_GENERATOR: generator}
        tensors |= {} if self.logits is None else {_LOGITS: self.logits}
        write_snapshot(Path(path), header, tensors)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Snapshot":
        """Read a file that `save` wrote.

        Raises:
            InputError: it cannot be read, is no snapshot, is damaged, or of another version.
        """
        path = Path(path)
        header, tensors = read_snapshot(path)
        try:
            generator, seen = tensors.pop(_GENERATOR, None), tensors.pop(_SEEN)
            logits = tensors.pop(_LOGITS, None)
            _validate_logits(logits)
            return cls(
                made_by=_made_by(header),
                num_seen=_validate_count("num_seen", header["num_seen"]),
                tensors=upgrade_tensors(tensors),
                sampling=Sampling(**header["sampling"]),
                sampler=SamplerState(generator=generator, seen=seen),
                last=None if header["last"] is None else _validate_count("last", header["last"]),
                logits=logits,
                name=str(path),
            )
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise InputError(
                f"{path} is undamaged, but its header is invalid ({error}); save another"
            ) from error


def kind_of_version_0_1(header: Header) -> str | None:
    """Return the kind of a snapshot that lacache 0.1 saved; None of any other snapshot.

    Args:
        header: from `read_header`.
    """
    return _digest(_made_by(header)) if _PLAN in header else None


def take_snapshot(
    runner: Runner, batch_slot: int, sampler: Sampler, *, last: int | None, logits: Tensor | None
) -> Snapshot:
    """Return the state of the sequence in a batch slot, as a copy on the CPU.

    Args:
        runner: with the sequence's keys and values.
        batch_slot: of the sequence.
        sampler: its sampler.
        last: its newest token, if the model has not processed it.
        logits: of its next token [V], if the model has.

    Raises:
        ConfigError: the policy has no name that a file could hold.
        UnsupportedOperationError: the last change of the sequence was interrupted half-way.
    """
    return Snapshot(
        made_by=runner.identity,
        num_seen=runner.cache.sequences[batch_slot].num_seen,
        tensors=export_sequence(runner.cache, batch_slot),
        sampling=sampler.sampling,
        sampler=sampler.state(),
        last=last,
        logits=None if logits is None else logits.to("cpu", copy=True),
    )


def snapshot_kind(runner: Runner) -> str:
    """Return the kind of the snapshots that a runner takes and resumes."""
    return _digest(runner.identity)


def validate_snapshot(snapshot: Snapshot, runner: Runner) -> None:
    """Check that a snapshot is of a runner's model and policy, and consistent.

    What a cache holds is a function of the number of tokens, so other counts are impossible.

    Raises:
        InputError: it is of another model, type or policy, or inconsistent.
    """
    expected, made_by = runner.identity, snapshot.made_by
    for name, remedy in _REMEDIES.items():
        if made_by.get(name, _ABSENT) == expected.get(name, _ABSENT):
            continue
        theirs, ours = json.dumps(made_by.get(name)), json.dumps(expected.get(name))
        if name == "policy":
            own, other = runner.layout.bound, _bound_policy(made_by, runner)
            if other is None and _PLAN in made_by:
                raise InputError(
                    f"{snapshot.name} was saved with a policy of lacache 0.1 that cannot be "
                    "continued, as its groups were compacted at different tokens; prefill its text "
                    "again"
                )
            if other is not None and _keeps_the_same(other, own):
                continue
            short = theirs if other is None else _in_short(other)
            own_short = _in_short(own) if isinstance(own.policy, Groups) else str(own)
            if short != own_short:  # else only the whole texts show the difference
                theirs, ours = short, own_short
        raise InputError(
            f"{snapshot.name} was saved with {name}={theirs}, and this engine has "
            f"{name}={ours}; {remedy}"
        )
    reason = next(_inconsistencies(snapshot, runner), None)
    if reason is not None:
        raise InputError(f"{snapshot.name} cannot be resumed: {reason}")


def _bound_policy(made_by: Header, runner: Runner) -> BoundPolicy | None:
    """Return the policy of a header, a plan of lacache 0.1 too; None if it cannot work here."""
    shape = runner.layout.bound.shape
    try:
        if "policy" not in made_by:
            return bind_plan(made_by.get(_PLAN), shape)
        policy = parse_text(made_by["policy"])
        return bind_policy(policy, None, shape, bytes_per_token=1, prompt_tokens=1)
    except LaCacheError:
        return None


def _keeps_the_same(one: BoundPolicy, other: BoundPolicy) -> bool:
    """Return whether policies keep the same tokens, whatever their texts are."""
    return [(g.schedule, g.heads) for g in one.groups] == [
        (g.schedule, g.heads) for g in other.groups
    ]


def _in_short(bound: BoundPolicy) -> str:
    """Return a policy of groups and its capacity in a few words."""
    capacity = int(mean_capacity(bound.groups))
    texts = list(dict.fromkeys(str(group.policy) for group in bound.groups))
    if len(texts) == 1:
        return f"{texts[0]} at {capacity}"
    names = dict.fromkeys(text.partition(":")[0] for text in texts)
    return f"{len(bound.groups)} groups of {' and '.join(names)} at {capacity}"


def _inconsistencies(snapshot: Snapshot, runner: Runner) -> Iterator[str]:
    seen, last, logits = snapshot.sampler.seen, snapshot.last, snapshot.logits
    if last is not None and last >= runner.vocab_size:
        yield f"its newest token {last} is not in the model's vocabulary; save another"
    if len(seen) and not 0 <= int(seen.min()) <= int(seen.max()) < runner.vocab_size:
        yield "it has seen tokens that are not in the model's vocabulary; save another"
    if logits is not None and len(logits) != runner.vocab_size:
        yield (
            f"it has logits of {len(logits)} tokens, and the model has {runner.vocab_size}; save "
            "another"
        )
    base = snapshot.tensors.get("base")
    is_base = base is not None and base.dtype == torch.int64 and base.shape == (1,)
    if base is not None and is_base and not 0 <= int(base[0]) <= snapshot.num_seen:
        yield f"its positions count from token {int(base[0])} of {snapshot.num_seen}; save another"
    for number, group in enumerate(runner.layout.bound.groups):
        counts = snapshot.tensors.get(f"group.{number}.counts")
        if counts is None or counts.dtype != torch.int64 or counts.shape != (5,):
            continue  # restoring it raises the error
        stands = State(*counts.tolist()[:3])
        due = Timetable(group.schedule).state_at(snapshot.num_seen)
        if stands not in (due, group.schedule.settle(due)):
            yield (
                f"after {snapshot.num_seen} tokens a cache holds {due.num_cached} and not "
                f"{stands.num_cached} tokens (or stands elsewhere in its pass), as with a version "
                "whose compactions freed other numbers of slots; prefill the text again"
            )


def new_sampler(snapshot: Snapshot, sampling: Sampling | None) -> Sampler:
    """Return a sampler that continues from a snapshot, with other settings if given.

    Raises:
        InputError: the random numbers' state is not one of torch's.
    """
    state = snapshot.sampler
    if sampling is not None:
        state = SamplerState(generator=None, seen=state.seen)
    sampler = Sampler(snapshot.sampling if sampling is None else sampling)
    sampler.restore(state)
    return sampler


def _validate_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}")
    return value


def _validate_logits(logits: Tensor | None) -> None:
    if logits is not None and (logits.dtype != torch.float32 or logits.ndim != 1):
        raise ValueError(f"{_LOGITS} are {logits.dtype} {tuple(logits.shape)}")


def _made_by(header: Header) -> Header:
    return {name: header[name] for name in (*_REMEDIES, _PLAN) if name in header}


def _digest(made_by: Header) -> str:
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()

"""A session as a file: what is written, and whether it belongs to an engine (docs/adr/0011)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.static.row_state import RowState, take_row
from lacache.core.errors import ConfigError, InputError
from lacache.core.plan_record import plan_record
from lacache.engine.open_row import OpenRow
from lacache.engine.runner import Runner
from lacache.engine.sampling import Sampler, SamplerState, Sampling
from lacache.engine.snapshot_file import Header, read_snapshot, write_snapshot

_REMEDIES = {
    "dtype": "load the model in the snapshot's type",
    "kv_dtype": "make the engine with the snapshot's kv_dtype",
    "weights": "make the engine with the snapshot's weights",
    "model": "load the model with which it was saved",
    "positions": "load the model with the configuration with which it was saved",
    "plan": "make the engine with the snapshot's plan: read_plan(read_header(path)['plan'])",
}
"""What both must have in common, and what to do where they differ; the first difference is told."""

_SEEN, _GENERATOR, _LOGITS = "sampler.seen", "sampler.generator", "logits"
_DIGITS = 40


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where a session stood."""

    row: RowState
    sampler: Sampler
    last: int | None
    """The newest token of the text, where the model had not read it."""
    logits: Tensor | None
    """Those of the next token [V], where it had."""


def save_snapshot(path: Path, runner: Runner, opened: OpenRow) -> None:
    """Write what a row of a runner holds, and how its text goes on.

    Raises:
        InputError: the file cannot be written.
        ConfigError: the plan has no name that a file could hold.
        UnsupportedOperationError: the last change of the row was interrupted half-way.
    """
    num_seen = runner.store.rows[opened.index].num_seen
    state = opened.sampler.state()
    generator = {} if state.generator is None else {_GENERATOR: state.generator}
    header = {
        **_asked_of(runner),
        "sampling": asdict(opened.sampler.sampling),
        "num_seen": num_seen,
        "last": opened.last,
        # A file is as long for a long text as for a short one.
        "padding": " " * (_DIGITS - len(f"{num_seen}{opened.last}")),
    }
    logits = opened.logits
    pending = {} if logits is None else {_LOGITS: logits.to("cpu", copy=True)}
    tensors = {**take_row(runner.store, opened.index), _SEEN: state.seen, **generator, **pending}
    write_snapshot(path, header, tensors)


def load_snapshot(path: Path, runner: Runner) -> Snapshot:
    """Read a snapshot that belongs to a runner's model and plan.

    Raises:
        InputError: the file cannot be read, is no snapshot or not whole; or it is of another
            version, model, type or plan.
    """
    header, tensors = read_snapshot(path)
    _check(path, header, _asked_of(runner))
    try:
        sampler = Sampler(Sampling(**header["sampling"]))
        generator, seen = tensors.pop(_GENERATOR, None), tensors.pop(_SEEN)
        last = header["last"]
        logits = tensors.pop(_LOGITS, None)
        if logits is not None:
            logits = _checked_logits(logits, runner)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise InputError(
            f"{path} is whole, but says nothing useful of how to go on ({error}); save another"
        ) from error
    sampler.restore(SamplerState(generator=generator, seen=seen))
    return Snapshot(tensors, sampler, last, logits)


def _checked_logits(logits: Tensor, runner: Runner) -> Tensor:
    if logits.dtype != torch.float32 or logits.ndim != 1:
        raise ValueError(f"{_LOGITS} are {logits.dtype} {tuple(logits.shape)}")
    return logits.to(runner.store.device)


def _asked_of(runner: Runner) -> Header:
    """What a snapshot must have in common with a runner, as JSON gives it back."""
    shape = runner.shape
    config: Any = shape.facts.text_config
    asked = {
        "dtype": _name(shape.facts.dtype),
        "kv_dtype": shape.kv_dtype,
        "weights": runner.weights,
        "model": runner.fingerprint,
        # The same weights may be told to rotate keys in another way.
        "positions": config.rope_parameters,
        "plan": plan_record(shape.plan),
    }
    same: Header = json.loads(json.dumps(asked))
    return same


def _check(path: Path, header: Header, asked: Header) -> None:
    for name, remedy in _REMEDIES.items():
        if name not in header or header[name] != asked[name]:
            theirs, ours = json.dumps(header.get(name)), json.dumps(asked[name])
            raise InputError(
                f"{path} was saved with {name}={theirs}, and this engine has {name}={ours}; "
                f"{remedy}"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

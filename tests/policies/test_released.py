"""Parity with the authors' released code, on traces that were measured on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lacache.policies import Paper, kept_after
from lacache.policies.ladder import LadderSchedule
from lacache.policies.reference import reference_kept

TRACES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("released_traces.json").read_text()
)


def schedule_of(trace: dict[str, Any]) -> LadderSchedule:
    policy = Paper(span=trace["span"], overlap=trace["overlap"], sinks=trace["start_size"])
    capacity = policy.released_capacity(trace["cache_size"], trace["num_layers"])
    return policy.schedule(trace["num_layers"], capacity)


def name_of(trace: dict[str, Any]) -> str:
    keys = ("num_layers", "span", "overlap", "cache_size", "start_size")
    return "-".join(str(trace[key]) for key in keys)


def test_there_are_39_traces_with_checkpoints() -> None:
    assert len(TRACES) == 39
    assert all(len(trace["checkpoints"]) >= 5 for trace in TRACES)


@pytest.mark.parametrize("trace", TRACES, ids=name_of)
def test_keeps_the_same_tokens(trace: dict[str, Any]) -> None:
    schedule = schedule_of(trace)
    for checkpoint in trace["checkpoints"]:
        expected = [checkpoint["kept"][i] for i in checkpoint["layer_to_kept"]]
        kept = kept_after(schedule, checkpoint["seen"])
        kept.settle()
        assert [kept.by_pattern[p] for p in schedule.patterns] == expected


@pytest.mark.parametrize("trace", TRACES[::6], ids=name_of)
def test_so_does_the_slow_reference(trace: dict[str, Any]) -> None:
    schedule = schedule_of(trace)
    recent = trace["num_layers"] + 1 - schedule.geometry.freed
    for checkpoint in trace["checkpoints"][:3]:
        _, layers = reference_kept(
            checkpoint["seen"],
            settled=True,
            num_layers=trace["num_layers"],
            capacity=trace["cache_size"] + schedule.geometry.freed // 2 + 1,
            span=trace["span"],
            overlap=trace["overlap"],
            sinks=trace["start_size"],
            recent=recent,
            evict_batch=1,
        )
        assert layers == [checkpoint["kept"][i] for i in checkpoint["layer_to_kept"]]

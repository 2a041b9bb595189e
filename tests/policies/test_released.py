"""Parity with the authors' released code, on traces that were measured on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lacache.policies import Ladder, kept_after
from lacache.policies.reference import reference_kept

TRACES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("released_traces.json").read_text()
)


def config_of(trace: dict[str, Any]) -> Ladder:
    return Ladder.released(
        trace["cache_size"],
        trace["start_size"],
        trace["span"],
        trace["overlap"],
        trace["num_layers"],
    )


def name_of(trace: dict[str, Any]) -> str:
    keys = ("num_layers", "span", "overlap", "cache_size", "start_size")
    return "-".join(str(trace[key]) for key in keys)


def test_there_are_39_traces_with_checkpoints() -> None:
    assert len(TRACES) == 39
    assert all(len(trace["checkpoints"]) >= 5 for trace in TRACES)


@pytest.mark.parametrize("trace", TRACES, ids=name_of)
def test_keeps_the_same_tokens(trace: dict[str, Any]) -> None:
    config = config_of(trace)
    schedule = config.bind(trace["num_layers"])
    for checkpoint in trace["checkpoints"]:
        expected = [checkpoint["kept"][i] for i in checkpoint["layer_to_kept"]]
        kept = kept_after(schedule, checkpoint["seen"])
        kept.settle()
        assert [kept.by_pattern[p] for p in schedule.patterns] == expected


@pytest.mark.parametrize("trace", TRACES[::6], ids=name_of)
def test_so_does_the_slow_reference(trace: dict[str, Any]) -> None:
    config = config_of(trace)
    recent = trace["num_layers"] + 1 - config.bind(trace["num_layers"]).geometry.freed
    for checkpoint in trace["checkpoints"][:3]:
        _, layers = reference_kept(
            config, trace["num_layers"], recent, checkpoint["seen"], settled=True
        )
        assert layers == [checkpoint["kept"][i] for i in checkpoint["layer_to_kept"]]

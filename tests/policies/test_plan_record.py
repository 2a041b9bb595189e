"""Plans to JSON and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError, InputError
from lacache.policies import Full, Plan, RetrievalHeads, Streaming
from lacache.policies.plan_record import load_plan, plan_record, read_plan
from tests.policies.group_strategies import groups
from tests.policies.strategies import ladders

HISTORY = RetrievalHeads(capacity=64, history=(1, (2, 0)), window=0.25, unit=2)


@given(st.one_of(ladders().map(lambda pair: pair[0]), groups(5, 2), groups(5, 2, by_head=False)))
@settings(max_examples=50, deadline=None)
def test_there_and_back(plan: Plan) -> None:
    assert read_plan(json.loads(json.dumps(plan_record(plan)))) == plan


@pytest.mark.parametrize("plan", [Full(), Streaming(40, evict_batch=2), HISTORY])
def test_there_and_back_for_the_others(plan: Plan) -> None:
    assert read_plan(json.loads(json.dumps(plan_record(plan)))) == plan


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "must be a JSON object with 'name'"),
        ({"capacity": 5}, "must be a JSON object with 'name'"),
        ({"name": "lader"}, "name='lader' of a plan must be one of ladder"),
        ({"name": ["ladder"]}, "name=['ladder'] of a plan must be one of ladder"),
        ({"name": "ladder", "capacity": 9, "span": 2, "geometry": {}}, "geometry={} must be one"),
        ({"name": "streaming"}, "streaming needs capacity"),
        ({"name": "streaming", "capacity": 9, "size": 3}, "streaming has no size; use capacity"),
        ({"name": "streaming", "capacity": 0}, "capacity=0 must be at least 1"),
        ({"name": "groups", "groups": 3}, "groups=3 must be a list"),
        ({"name": "groups", "groups": [{"members": [0]}]}, "a group needs policy"),
        (
            {"name": "groups", "groups": [{"members": [0], "policy": plan_record(HISTORY)}]},
            "the policy of a group cannot be 'history'",
        ),
    ],
)
def test_what_is_no_plan(record: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_plan(record)
    assert message in str(raised.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(InputError, match="No such file"):
        load_plan(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_plan(path)
    path.write_text(json.dumps(plan_record(HISTORY)))
    assert load_plan(path) == HISTORY

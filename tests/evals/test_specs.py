from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.errors import ConfigError
from lacache.evals.methods.ladder import LadderMethod
from lacache.evals.methods.registry import METHODS, parse_method
from lacache.evals.specs import format_spec, parse_spec, split_specs


@dataclass(frozen=True)
class Made:
    size: int
    share: float | None = None
    name: str = "x"
    flag: bool = False
    numbers: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        ("ladder", LadderMethod()),
        (
            "ladder:span=15,overlap=12,recent=0.5,unit=4",
            LadderMethod(span=15, overlap=12, recent=0.5, unit=4),
        ),
        ("ladder: geometry = consecutive , sinks=0", LadderMethod(geometry="consecutive", sinks=0)),
        ("ladder:window_layers=0-2+9", LadderMethod(window_layers=(0, 1, 2, 9))),
        ("ladder:span=none,recent=none", LadderMethod()),
    ],
)
def test_specs_are_read(spec: str, made: LadderMethod) -> None:
    assert parse_method(spec) == made


MADE = st.builds(
    Made,
    size=st.integers(-5, 5),
    share=st.none() | st.floats(0, 1),
    name=st.text("abc:=./", min_size=1, max_size=5),
    flag=st.booleans(),
    numbers=st.lists(st.integers(0, 9), max_size=4).map(tuple),
)


@given(made=MADE)
def test_specs_come_back_as_they_were(made: Made) -> None:
    assert parse_spec(format_spec("made", made), {"made": Made}, "thing") == made


def test_only_what_is_not_the_default_is_written() -> None:
    assert format_spec("ladder", LadderMethod()) == "ladder"
    assert format_spec("ladder", LadderMethod(span=3, unit=2)) == "ladder:span=3,unit=2"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("laddder", "method 'laddder' must be one of full.*; try ladder$"),
        ("", "method '' must be one of"),
        ("ladder:width=3", "method ladder has no setting 'width'; it has span, overlap"),
        ("full:sinks=3", "method full has no setting 'sinks'; it has no settings"),
        ("ladder:span", "setting 'span' of method ladder has no value; try span=VALUE"),
        ("ladder:span=3,span=4", "was given span twice"),
        ("ladder:span=x", "span=x must be a whole number; try span=1"),
        ("ladder:span=2.5", "span=2.5 must be a whole number"),
        ("ladder:recent=x", "recent=x must be a number; try recent=0.5"),
        ("ladder:recent=1.5", r"recent=1.5 must be a share in \[0, 1\)"),
        ("ladder:recent=nan", "recent=nan must be a share"),
        ("ladder:window_layers=3-1", "'3-1' is neither"),
        ("ladder:window_layers=0-99999999999", "is neither"),
        ("ladder:overlap=3", "overlap=3 says nothing without a span"),
        ("ladder:span=3,overlap=3", "overlap=3 must be below span=3"),
        ("ladder:geometry=round", "must be one of interleaved, consecutive"),
        ("uniform:evict_batch=1", "evict_batch=1.0 must be a share"),
        ("streaming:sinks=-1", "sinks=-1 must be at least 0"),
    ],
)
def test_bad_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_method(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("made", "thing made needs size; try made:size=VALUE"),
        ("made:size=1,flag=yes", "flag=yes must be true or false"),
    ],
)
def test_what_is_needed_must_be_given(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(spec, {"made": Made}, "thing")


@pytest.mark.parametrize(
    ("texts", "specs"),
    [
        (["a,b"], ["a", "b"]),
        (["a:x=1,y=2,b:z=3"], ["a:x=1,y=2", "b:z=3"]),
        (["a:x=1; b", "c"], ["a:x=1", "b", "c"]),
        (["ppl:text=shakespeare:hamlet,start=3,a"], ["ppl:text=shakespeare:hamlet,start=3", "a"]),
        ([" ; ,", ""], []),
        # A setting with nothing to belong to is left for the parser to refuse.
        (["x=1,a"], ["x=1", "a"]),
    ],
)
def test_several_specs_are_told_apart(texts: list[str], specs: list[str]) -> None:
    assert split_specs(texts) == specs


def test_every_method_can_be_recorded_and_made_again() -> None:
    needed: dict[str, Any] = {"released-ladder": ":span=3"}
    for name in METHODS:
        method = parse_method(name + needed.get(name, ""))
        assert method.name == name
        assert method.record()["name"] == name
        assert parse_method(format_spec(name, method)) == method

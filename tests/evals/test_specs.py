from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.common.settings_text import format_settings, parse_settings
from lacache.errors import ConfigError
from lacache.evals.suite import split_list
from lacache.evals.tasks.registry import parse_task


@dataclass(frozen=True)
class Made:
    size: int
    share: float | None = None
    word: str = "x"


MADE = st.builds(
    Made,
    size=st.integers(-5, 5),
    share=st.none() | st.floats(0, 1),
    word=st.text("abc:./", min_size=1, max_size=5),
)


def parse(text: str) -> Made:
    name, _, settings = text.partition(":")
    return Made(**parse_settings("thing", name, Made, settings, with_colons=True))


@given(made=MADE)
def test_specs_come_back_as_they_were(made: Made) -> None:
    assert parse(format_settings("made", made)) == made


def test_only_what_is_not_the_default_is_written() -> None:
    assert format_settings("made", Made(3)) == "made:size=3"
    assert format_settings("made", Made(3, word="a:b")) == "made:size=3:word=a:b"


def test_a_text_value_may_hold_colons() -> None:
    task = parse_task("ppl:text=shakespeare:hamlet:start=5")
    assert format_settings(task.name, task) == "ppl:start=5"
    task = parse_task("ppl:text=wikipedia:Algae:start=5")
    assert format_settings(task.name, task) == "ppl:text=wikipedia:Algae:start=5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("made:width=3", "thing 'made' has no setting 'width'; use size, share, word"),
        ("made:size", "setting 'size' of thing 'made' has no value; write size=VALUE"),
        ("made:size=3:size=4", "setting 'size' of thing 'made' is given twice"),
        ("made:size=x", "size=x of thing 'made' cannot be read; try size=4"),
        ("made:size=2.5", "size=2.5 of thing 'made' cannot be read"),
        ("made:size=1:share=x", "share=x of thing 'made' cannot be read; try share=0.1"),
        ("made", "thing 'made' needs size; write made:size=VALUE"),
    ],
)
def test_bad_specs_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task 'pasckey' must be one of .*; try passkey"):
        parse_task("pasckey:size=1")
    with pytest.raises(ConfigError, match="task '' must be one of"):
        parse_task("")


@pytest.mark.parametrize(
    ("texts", "items"),
    [
        (["a,b"], ["a", "b"]),
        (["a:x=1:y=2,b:z=3"], ["a:x=1:y=2", "b:z=3"]),
        (["a:x=1; b", "c"], ["a:x=1", "b", "c"]),
        ([" ; ,", ""], []),
    ],
)
def test_lists_are_split(texts: list[str], items: list[str]) -> None:
    assert split_list(texts) == items

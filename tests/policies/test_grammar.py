"""Policies to text and back."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError, InputError
from lacache.policies import (
    Full,
    Groups,
    Ladder,
    Paper,
    Policy,
    RetrievalHeads,
    Streaming,
    Uniform,
    parse_policy,
    policy_names,
)
from tests.policies.group_strategies import groups, shrinking_windows
from tests.policies.strategies import ladders

SHARES = st.floats(0.001, 0.999)
SLOTS = st.one_of(st.integers(1, 10**6), SHARES)
SPANS = st.one_of(st.none(), st.integers(20, 99))
MEMBERS = st.lists(
    st.one_of(st.integers(0, 40), st.tuples(st.integers(0, 40), st.integers(0, 7))), min_size=1
)


@st.composite
def retrieval_heads(draw: st.DrawFn) -> RetrievalHeads:
    by_profile = draw(st.booleans())
    chosen: dict[str, Any] = (
        {"share": draw(SHARES), "most": draw(SHARES)}
        if by_profile
        else {"heads": tuple(map(tuple, draw(st.lists(MEMBERS, min_size=1, max_size=3))))}
    )
    return RetrievalHeads(
        **chosen,
        window=draw(SHARES),
        without_profile=draw(st.sampled_from(["ladder", "depth"])),
        sinks=draw(st.integers(0, 99)),
        evict_batch=draw(SLOTS),
        span=draw(SPANS),
        overlap=draw(st.one_of(st.none(), st.integers(0, 19))),
        recent=draw(st.one_of(st.none(), SLOTS)),
        geometry=draw(st.sampled_from(["interleaved", "consecutive"])),
        unit=draw(st.integers(1, 9)),
    )


POLICY = st.one_of(
    ladders().map(lambda sized: sized.policy),
    shrinking_windows().map(lambda sized: sized[0]),
    st.builds(Streaming, sinks=st.integers(0, 99), evict_batch=SLOTS),
    st.builds(Paper, span=SPANS, overlap=st.integers(0, 19), sinks=st.integers(0, 99)),
    st.builds(Uniform, span=SPANS, evict_batch=SLOTS, recent=st.one_of(st.none(), SLOTS)),
    retrieval_heads(),
    groups(5, 2),
    groups(5, 2, by_head=False),
    st.just(Full()),
)


@given(POLICY)
@settings(max_examples=300, deadline=None)
def test_there_and_back(policy: Policy) -> None:
    text = str(policy)
    assert parse_policy(text) == policy
    # Unquoted through a shell, and through lists that split at commas.
    assert not set(text) & set(" ,;&|<>()$`\\\"'*?[]{}!#~\n")


@pytest.mark.parametrize(
    "name", [name for name in policy_names() if name not in ("retrieval", "groups", "shrinking")]
)
def test_a_name_alone_is_its_own_text(name: str) -> None:
    assert str(parse_policy(name)) == name


def test_settings_are_read_by_their_type() -> None:
    assert parse_policy("ladder:span=15:overlap=0:evict_batch=0.25:recent=64") == Ladder(
        span=15, overlap=0, evict_batch=0.25, recent=64
    )
    assert parse_policy("ladder:window_layers=0-2+5") == Ladder(window_layers=(0, 1, 2, 5))
    assert parse_policy("retrieval:heads=8.0+17/12.1") == RetrievalHeads(
        heads=(((8, 0), 17), ((12, 1),))
    )
    policy = Streaming(sinks=8)
    assert parse_policy(policy) is policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "policy=3 must be a policy or its text; try policy='balanced'"),
        ("lader", "policy='lader' must be one of balanced, recall"),
        ("lader", "; try ladder"),
        ("", "policy='' must be one of"),
        ("ladder:size=3", "policy 'ladder' has no setting 'size'; use span, overlap"),
        ("full:sinks=3", "policy 'full' has no setting 'sinks'; use none"),
        ("ladder:span", "setting 'span' of policy 'ladder' has no value; write span=VALUE"),
        ("ladder:span=", "setting 'span' of policy 'ladder' has no value"),
        ("ladder:span=3:span=4", "setting 'span' of policy 'ladder' is given twice"),
        ("ladder:span=three", "span=three of policy 'ladder' cannot be read; try span=4"),
        ("ladder:span=0.5", "span=0.5 of policy 'ladder' cannot be read; try span=4"),
        ("ladder:evict_batch=nan", "evict_batch=nan as a share of the capacity must be in"),
        ("ladder:span=1_5", "span=1_5 of policy 'ladder' cannot be read"),
        ("ladder:span= 15", "span= 15 of policy 'ladder' cannot be read"),
        ("ladder:span=٣", "cannot be read; try span=4"),
        ("ladder:span=15,overlap=0", "cannot be read; separate settings by colons, such as"),
        ("ladder:window_layers=3.1", "window_layers=3.1 is a KV head, and whole layers are needed"),
        ("ladder:window_layers=9-2", "window_layers=9-2 of policy 'ladder' cannot be read"),
        ("ladder:window_layers=0-99999999999", "cannot be read; try window_layers=0-2+5"),
        ("ladder:span=16:overlap=16", "overlap=16 must be below span=16; try overlap=8"),
        ("ladder:geometry=spiral", "geometry='spiral' must be one of interleaved"),
        (
            "shrinking:least=3",
            "policy 'shrinking' needs growing_heads, window_heads; write",
        ),
        ("balanced:heads=3:share=0.1", "heads cannot be given with share=0.1"),
        ("groups", "group '' must be MEMBERS@CAPACITY@POLICY; try 0-11@512@streaming"),
        ("groups:0@x@ladder", "group '0@x@ladder' must be MEMBERS@CAPACITY@POLICY"),
        ("groups:0@9@balanced", "policy balanced cannot be that of a group"),
        ("groups:0@9@@policy.txt", "policy='@policy.txt' must be one of"),
        ("groups:0@9@lader", "policy='lader' must be one of"),
    ],
)
def test_what_is_no_policy(text: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_policy(text)
    assert message in str(raised.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "policy.txt"
    with pytest.raises(InputError, match="No such file"):
        parse_policy(f"@{path}")
    with pytest.raises(InputError, match="'@' names no file; try @policy"):
        parse_policy("@")
    path.write_text(
        "# long history for half of the layers\ngroups:\n  0-2@64@ladder # ladder\n"
        "  /3-5@16@streaming\n"
    )
    policy = parse_policy(f"@{path}")
    assert isinstance(policy, Groups)
    assert str(policy) == "groups:0-2@64@ladder/3-5@16@streaming"
    path.write_text('{"name": "ladder", "capacity": 512, "span": 15}')
    with pytest.raises(InputError, match="is JSON, as lacache"):
        parse_policy(f"@{path}")
    path.write_text("@other.txt")
    with pytest.raises(InputError, match="names another file"):
        parse_policy(f"@{path}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        parse_policy(f"@{path}")

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.errors import ConfigError, InputError
from lacache.policies.head_profile import (
    SHIPPED,
    HeadProfile,
    find_profile,
    layers_by_depth,
    parse_profile,
    profile_json,
    read_profile,
)

PROFILE = HeadProfile(
    fingerprint="aaaa-1111",
    model="tiny",
    window=64,
    sinks=4,
    importance=((0.1, -0.25), (0.5, 0.0)),
    order=((1, 0), (0, 0), (1, 1), (0, 1)),
    loss_left=((0, 1.0), (1, 0.5), (4, 0.0)),
)


@st.composite
def profiles(draw: st.DrawFn) -> HeadProfile:
    heads = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    losses = st.floats(-1, 2)
    pairs = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
    counts = sorted(draw(st.sets(st.integers(0, len(pairs)))))
    return HeadProfile(
        fingerprint="0-1",
        model="drawn",
        window=draw(st.integers(1, 99)),
        sinks=draw(st.integers(0, 9)),
        importance=tuple(tuple(draw(losses) for _ in range(count)) for count in heads),
        order=tuple(draw(st.permutations(pairs))),
        loss_left=tuple((count, draw(losses)) for count in counts),
    )


@given(profiles())
def test_a_profile_survives_json(profile: HeadProfile) -> None:
    assert parse_profile(json.loads(json.dumps(profile_json(profile))), "it") == profile


@given(profiles())
def test_format_1_still_loads(profile: HeadProfile) -> None:
    old = json.loads(json.dumps(profile_json(profile))) | {"format": 1}
    old["need"], old["left"] = old.pop("importance"), old.pop("loss_left")
    assert parse_profile(old, "it") == profile


@given(profiles())
def test_layers_come_in_the_order_of_their_first_heads(profile: HeadProfile) -> None:
    places = {pair: place for place, pair in enumerate(profile.order)}
    first = {
        layer: min(places[layer, head] for head in range(count))
        for layer, count in enumerate(profile.num_heads)
    }
    assert list(profile.layers()) == sorted(range(profile.num_layers), key=first.__getitem__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"sinks": -1}, "sinks=-1 must be at least 0"),
        ({"fingerprint": ""}, "fingerprint=''"),
        ({"importance": ()}, "every layer's heads"),
        ({"importance": ((0.1, float("nan")), (0.5, 0.0))}, "nan in a profile"),
        ({"order": PROFILE.order[:3]}, "order of a profile has 3 pairs"),
        ({"order": (*PROFILE.order[:3], (1, 0))}, "each of the 4 pairs"),
        ({"loss_left": ((2, 0.5), (1, 1.0))}, "must increase"),
        ({"loss_left": ((5, 0.5),)}, "to 4 at most"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PROFILE, **change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a profile of format 2"),
        ('{"format": 3}', "not a profile of format 2"),
        ('{"format": 1}', "damaged profile"),
        ('{"format": 2}', "damaged profile"),
        ("{", "not JSON"),
    ],
)
def test_files_that_are_no_profiles_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_profile(path)
    with pytest.raises(InputError, match="cannot read"):
        read_profile(tmp_path / "missing.json")


@pytest.mark.parametrize("change", [{"num_layers": 99}, {"num_heads": [99]}])
def test_a_profile_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(InputError, match=f"{name}=.*99.* must be .*, as importance has it"):
        parse_profile(profile_json(PROFILE) | change, "it")


def test_the_same_weights_win_over_the_same_configuration(tmp_path: Path) -> None:
    for number, fingerprint in enumerate(("aaaa-2222", "aaaa-1111", "bbbb-3333")):
        profile = replace(PROFILE, fingerprint=fingerprint)
        (tmp_path / f"{number}.json").write_text(json.dumps(profile_json(profile)))
    folders = [tmp_path / "none", tmp_path]

    exact = find_profile("aaaa-1111", folders)
    alike = find_profile("bbbb-4444", folders)

    assert exact is not None
    assert exact.matches("aaaa-1111")
    assert alike is not None
    assert alike.fingerprint == "bbbb-3333"
    assert not alike.matches("bbbb-4444")
    assert alike.resembles("bbbb-4444")
    assert find_profile("cccc-1111", folders) is None


def test_the_shipped_profiles_can_be_read() -> None:
    paths = list(SHIPPED.glob("*.json"))
    assert paths
    for path in paths:
        profile = read_profile(path)
        assert find_profile(profile.fingerprint) == profile


@given(st.integers(1, 100))
def test_the_guess_by_depth_starts_past_the_middle(num_layers: int) -> None:
    order = layers_by_depth(num_layers)
    assert sorted(order) == list(range(num_layers))
    # Whatever the count, the first ones lie side by side around 0.65 of the depth.
    third = sorted(order[: max(1, num_layers // 3)])
    assert third == list(range(third[0], third[-1] + 1))
    assert third[0] <= 0.65 * num_layers <= third[-1] + 1


def test_the_guess_by_depth_finds_what_was_measured() -> None:
    assert 18 in layers_by_depth(30)[:3]
    assert 16 in layers_by_depth(24)[:3]
    with pytest.raises(ConfigError, match="num_layers=0"):
        layers_by_depth(0)


def test_heads_that_leave_a_loss_are_interpolated() -> None:
    pairs = tuple((layer, 0) for layer in range(10))
    losses = ((0, 1.0), (2, 0.6), (4, 0.2), (6, -0.1))
    profile = HeadProfile("a-b", "tiny", 16, 4, ((0.1,),) * 10, pairs, losses)
    assert [profile.heads_that_leave(x) for x in (0.9, 0.6, 0.5, 0.2, 0.1)] == [1, 2, 3, 4, 5]
    # Without measurements between them, the loss is linear from no heads to all.
    assert replace(profile, loss_left=()).heads_that_leave(0.2) == 8

"""Configurations validate themselves, and a remedy that is named does work."""

import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacache.errors import ConfigError, LaCacheError
from lacache.policies import Geometry, Ladder, Streaming, default_span_overlap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": 0}, "span=0 must be at least 1"),
        ({"span": 16, "overlap": 16}, "overlap=16 must be below span=16; try overlap=8"),
        ({"span": 1, "overlap": 1}, "overlap=1 must be below span=1; try span=2 or overlap=0"),
        ({"overlap": -1}, "overlap=-1 must be at least 0"),
        ({"span": 32}, "span=32 must be below the number of layers 32; try span=31, overlap=0"),
        ({"sinks": -1}, "sinks=-1 must be at least 0"),
        ({"recent": -1}, "recent=-1 must be at least 0"),
        ({"evict_batch": 0}, "evict_batch=0 must be at least 1"),
        ({"evict_batch": True}, "evict_batch=True must be an integer"),
        ({"evict_batch": 1.0}, "evict_batch=1.0 as a share of the capacity must be in (0, 1)"),
        ({"recent": -0.5}, "recent=-0.5 as a share of the capacity must be in (0, 1)"),
        ({"unit": 0}, "unit=0 must be at least 1"),
        ({"geometry": "spiral"}, "geometry='spiral' must be one of interleaved, consecutive"),
        ({"window_layers": (32,)}, "window_layers=32 must be below the number of layers 32"),
        ({"window_layers": (-1,)}, "window_layers=-1 must be at least 0"),
        (
            {"capacity": 37, "recent": 32},
            "capacity=37 must be at least 38 = sinks 4 + recent 32 + one band of 2 x unit 1; "
            "try capacity=38",
        ),
        ({"span": 17, "overlap": 16}, "keeps all 16 units of a band, and at least one must be"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"span": 16} | options
    capacity = fields.pop("capacity", 64)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Ladder(**fields).schedule(32, capacity)
    assert isinstance(caught.value, LaCacheError)


@given(st.integers(2, 40), st.integers(1, 45), st.integers(0, 45))
@settings(max_examples=300, deadline=None)
def test_a_near_span_and_overlap_that_are_named_work(
    num_layers: int, span: int, overlap: int
) -> None:
    try:
        geometry = Geometry(num_layers, span, overlap)
    except ConfigError as error:
        named = re.search(r"try span=(\d+), overlap=(\d+)", str(error))
        if named is None:
            assert overlap >= span
            return
        geometry = Geometry(num_layers, int(named[1]), int(named[2]))
    assert geometry.freed >= 1
    assert geometry.kept + geometry.freed == geometry.band


@given(st.integers(2, 200))
def test_the_default_works_at_any_depth(num_layers: int) -> None:
    span, overlap = default_span_overlap(num_layers)
    assert Geometry(num_layers, span, overlap).freed >= 1


@given(st.integers(2, 40), st.data())
@settings(max_examples=200, deadline=None)
def test_consecutive_layers_share_a_token(num_layers: int, data: Any) -> None:
    """The paper's picture: a unit of a band lives in a run of layers, one after the other."""
    span = data.draw(st.integers(1, num_layers - 1))
    overlap = data.draw(st.integers(0, span - 1))
    try:
        geometry = Geometry(num_layers, span, overlap, "consecutive")
    except ConfigError:
        return
    phases = [geometry.phase(layer) for layer in range(num_layers)]
    assert phases[0] == 0
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(phases))
    assert set(phases) <= set(range(geometry.freed + 1))


def test_configurations_compare_and_hash_by_value() -> None:
    one = Ladder(span=8, window_layers=[2, 1, 2])  # type: ignore[arg-type]
    two = Ladder(span=8, window_layers=(1, 2))
    assert one == two
    assert len({one, two}) == 1


@pytest.mark.parametrize(
    ("capacity", "evict_batch", "message"),
    [
        (4, 0.1, "capacity=4 must be at least 5 = sinks 4 + evict_batch 1; try capacity=5"),
        (6, 3, "capacity=6 must be at least 7 = sinks 4 + evict_batch 3; try capacity=7"),
        (9, 0, "evict_batch=0 must be at least 1"),
    ],
)
def test_streaming_refusals(capacity: int, evict_batch: float, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Streaming(evict_batch=evict_batch).schedule(2, capacity)


@pytest.mark.parametrize(("capacity", "recent"), [(256, 128), (12, 6), (7, 1), (6, 0)])
def test_the_default_recent_is_half_or_what_is_left(capacity: int, recent: int) -> None:
    assert Ladder(span=16).schedule(32, capacity).recent == recent


@pytest.mark.parametrize(
    ("evict_batch", "capacity", "slots"),
    [(0.1, 512, 51), (0.1, 9, 1), (0.29, 100, 29), (7, 512, 7)],
)
def test_a_share_of_the_capacity_is_rounded_down_to_slots(
    evict_batch: float, capacity: int, slots: int
) -> None:
    assert Streaming(evict_batch=evict_batch).schedule(8, capacity).evict_batch == slots


@pytest.mark.parametrize(("evict_batch", "freed"), [(1, 3), (3, 3), (10, 12), (1000, 18)])
def test_a_ladder_frees_whole_bands_and_at_most_what_a_pass_frees(
    evict_batch: int, freed: int
) -> None:
    ladder = Ladder(span=1, recent=4, sinks=2, evict_batch=evict_batch)
    assert ladder.schedule(4, 30).evict_batch == freed


def test_each_of_span_and_overlap_has_its_own_default() -> None:
    def geometry(**settings: int) -> tuple[int, int]:
        found = Ladder(**settings).schedule(6, 100).geometry
        return found.span, found.overlap

    assert geometry() == (3, 2)
    assert geometry(overlap=1) == (3, 1)
    assert geometry(span=3) == (3, 0)

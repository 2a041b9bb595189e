import pytest

from lacache.errors import ConfigError
from lacache.evals.methods.registry import METHODS, parse_method
from lacache.evals.methods.released import ReleasedLadder
from lacache.policies import Geometry, Ladder
from tests.cache.tiny_models import random_ids, tiny_model


@pytest.mark.parametrize(
    ("num_layers", "span", "overlap"), [(32, 16, 0), (32, 9, 3), (28, 14, 0), (5, 2, 1)]
)
def test_it_is_the_released_code_within_the_capacity(
    num_layers: int, span: int, overlap: int
) -> None:
    freed = Geometry(num_layers, span, overlap).freed
    policy = ReleasedLadder(span=span, overlap=overlap, sinks=8).policy(300, num_layers)
    cache_size = 300 - freed // 2 - 1
    assert policy == Ladder.released(cache_size, 8, span, overlap, num_layers)
    assert policy.capacity == 300


def test_it_never_holds_more_than_its_capacity() -> None:
    model = tiny_model("llama")
    cache = parse_method("released-ladder:span=2,sinks=2").open(model, capacity=20, dense=False)
    for piece in random_ids(90).split(7, dim=1):
        cache.prefill(model, piece)
        assert cache.report().num_cached <= 20
    assert cache.report().compactions > 30


def test_the_record_makes_it_again() -> None:
    method = parse_method("released-ladder:span=9,overlap=3,sinks=128")
    record = method.record()
    assert record.pop("name") == "released-ladder"
    assert METHODS["released-ladder"](**record) == method


def test_what_cannot_work() -> None:
    with pytest.raises(ConfigError, match="capacity=1 must be above 1"):
        ReleasedLadder(span=2).policy(1, 4)
    with pytest.raises(ConfigError, match="overlap=9 must be below span=9"):
        ReleasedLadder(span=9, overlap=9)
    with pytest.raises(ConfigError, match="sinks"):
        ReleasedLadder(span=9, sinks=-1)

"""Methods by name, for the command line and records. A new method adds one row here."""

from collections.abc import Callable

from lacache.evals.methods.full import FullCache
from lacache.evals.methods.h2o import H2OMethod
from lacache.evals.methods.history import History
from lacache.evals.methods.keydiff import KeyDiffMethod
from lacache.evals.methods.knorm import KnormMethod
from lacache.evals.methods.ladder import LadderMethod
from lacache.evals.methods.lagkv import LagKVMethod
from lacache.evals.methods.method import Method
from lacache.evals.methods.preset import PresetMethod
from lacache.evals.methods.pyramidkv import PyramidKVMethod
from lacache.evals.methods.random_ladder import RandomLadderMethod
from lacache.evals.methods.released import ReleasedLadder
from lacache.evals.methods.snapkv import SnapKVMethod
from lacache.evals.methods.streaming import StreamingMethod
from lacache.evals.methods.tova import TOVAMethod
from lacache.evals.methods.uniform import UniformStride
from lacache.evals.specs import parse_spec

METHODS: dict[str, Callable[..., Method]] = {
    FullCache.name: FullCache,
    StreamingMethod.name: StreamingMethod,
    LadderMethod.name: LadderMethod,
    ReleasedLadder.name: ReleasedLadder,
    UniformStride.name: UniformStride,
    History.name: History,
    PresetMethod.name: PresetMethod,
    RandomLadderMethod.name: RandomLadderMethod,
    KeyDiffMethod.name: KeyDiffMethod,
    KnormMethod.name: KnormMethod,
    LagKVMethod.name: LagKVMethod,
    TOVAMethod.name: TOVAMethod,
    H2OMethod.name: H2OMethod,
    SnapKVMethod.name: SnapKVMethod,
    PyramidKVMethod.name: PyramidKVMethod,
}


def parse_method(spec: str) -> Method:
    """The method that `NAME` or `NAME:key=value,key=value` says.

    Raises:
        ConfigError: no such method or setting, or a value that does not fit.
    """
    return parse_spec(spec, METHODS, "method")

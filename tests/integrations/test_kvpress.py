"""What importing the press needs; all other tests are in tests_kvpress."""

import importlib
import sys
from importlib.util import find_spec

import pytest

from lacache.errors import MissingExtraError
from tests.test_package import modules_loaded_by

STAND_IN = """
import sys, types
kvpress = types.ModuleType("kvpress")
kvpress.BasePress = type("BasePress", (), {})
kvpress.SUPPORTED_MODELS = ()
sys.modules["kvpress"] = kvpress
import lacache.integrations.kvpress
"""


@pytest.mark.skipif(find_spec("kvpress") is not None, reason="kvpress is installed")
def test_without_kvpress_the_error_has_the_remedy() -> None:
    for name in [name for name in sys.modules if name.startswith("lacache.integrations.kvpress")]:
        del sys.modules[name]
    with pytest.raises(MissingExtraError, match=r"No module named 'kvpress'.*own: pip install kv"):
        importlib.import_module("lacache.integrations.kvpress")


def test_needs_no_transformers() -> None:
    loaded = modules_loaded_by(STAND_IN)
    assert {"kvpress", "lacache", "torch"} <= loaded
    assert "transformers" not in loaded

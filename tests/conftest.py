"""The surroundings of every test: no network, one torch thread, no time limits."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Read when transformers and torch are first imported, so set before any test module loads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
# For commands, here and in processes that tests start; tests of calibration set it again.
os.environ["LACACHE_CALIBRATE"] = "0"

import pytest
from hypothesis import HealthCheck, settings

from lacache.common.files import profiles_folder

# The machine may be busy: how long an example takes says nothing about the code.
settings.register_profile("lacache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lacache")

# A shell starts its background jobs with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_profiles_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests may have calibrated a model; a home that a test sets counts."""
    empty = tmp_path_factory.mktemp("profiles")

    def folder() -> Path:
        return profiles_folder() if "LACACHE_HOME" in os.environ else empty

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lacache.models.fingerprint.profiles_folder", folder)
        yield

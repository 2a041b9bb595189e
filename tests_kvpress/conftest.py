"""Settings of the tests with kvpress: no network, one thread, the main environment."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("lacache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lacache")


@pytest.fixture(scope="session")
def main_python() -> Path:
    """Return the Python of the environment in which LaCache itself runs."""
    found = os.environ.get("LACACHE_PYTHON")
    assert found, "LACACHE_PYTHON must name the main environment's Python; try: make test-kvpress"
    return Path(found).absolute()

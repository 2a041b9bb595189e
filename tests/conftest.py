"""The surroundings of every test: no network, one torch thread, no time limits."""

import os
import signal

# Read when transformers and torch are first imported, so set before any test module loads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import HealthCheck, settings

# The machine may be busy: how long an example takes says nothing about the code.
settings.register_profile("lacache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lacache")

# A shell starts its background jobs with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

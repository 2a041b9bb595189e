"""The profile of a model that is loaded."""

from typing import Any

from lacache.cache.facts import model_facts
from lacache.cache.fingerprint import fingerprint
from lacache.core.home import profiles_folder
from lacache.core.profile import Profile, find_profile


def model_profile(model: Any) -> Profile | None:
    """Which KV heads need a long history, if that was measured for it.

    By the user or for the package, for these weights or for others of the same shape.

    Raises:
        InputError: a profile cannot be read.
        UnsupportedModelError: its caches or positions are not understood.
    """
    profile = find_profile(fingerprint(model), (profiles_folder(),))
    if profile is not None and profile.num_heads != model_facts(model).num_heads:
        # Of the same shape otherwise, but other layers are sliding.
        return None
    return profile

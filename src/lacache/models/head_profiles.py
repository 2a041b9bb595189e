"""The profile of a model that is loaded."""

from typing import Any

from lacache.common.home import profiles_folder
from lacache.models.fingerprint import fingerprint
from lacache.models.model_info import model_info
from lacache.policies.head_profile import HeadProfile, find_profile


def model_profile(model: Any) -> HeadProfile | None:
    """Which KV heads need a long history, if that was measured for it.

    By the user or for the package, for these weights or for others of the same shape.

    Raises:
        InputError: a profile cannot be read.
        UnsupportedModelError: its caches or positions are not understood.
    """
    profile = find_profile(fingerprint(model), (profiles_folder(),))
    if profile is not None and profile.num_heads != model_info(model).num_heads:
        # Of the same shape otherwise, but other layers are sliding.
        return None
    return profile

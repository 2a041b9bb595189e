"""Where the user's own profiles are kept."""

import json
from pathlib import Path

from lacache.common.home import profiles_folder
from lacache.common.records import replacing
from lacache.policies.head_profile import HeadProfile, profile_json


def profile_path(fingerprint: str) -> Path:
    """The file of a model's profile in the user's cache."""
    return profiles_folder() / f"{fingerprint}.json"


def journal_path(fingerprint: str) -> Path:
    """The file of what an interrupted calibration of a model has measured."""
    return profiles_folder() / f"{fingerprint}.partial.jsonl"


def save_profile(profile: HeadProfile, path: Path) -> None:
    """Write a profile as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in profile_json(profile).items()]
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

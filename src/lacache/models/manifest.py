"""A converted model's manifest: written last, so that what it vouches for is complete."""

import hashlib
import json
from pathlib import Path

from lacache.common.files import parse_json

MANIFEST = "lacache-manifest.json"
# Up to this size the content is checked at every start (0.2 s for 270 MB), above it the size alone.
HASHED_BYTES = 2 << 30


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Record the size and SHA-256 of every file in `folder`."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({"files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """What keeps `folder` from being used, in words; None where it is whole.

    Compares each file with the manifest: its size, and its SHA-256 up to `HASHED_BYTES`.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {
            name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        }
    except OSError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if size <= HASHED_BYTES and file_sha256(path) != sha256:
            return f"{name} does not have the content that was written"
    return None

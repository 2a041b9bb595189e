from pathlib import Path

import pytest

from lacache.errors import InputError
from lacache.evals.plots.profile import plot_profile
from lacache.policies.head_profile import HeadProfile

PROFILES = {
    "even": HeadProfile(
        "a-b", "even", 64, 4, ((0.5, -0.1), (0.2, 0.0)), ((0, 0), (1, 0), (1, 1), (0, 1)), ()
    ),
    "uneven": HeadProfile(
        "a-b", "uneven", 64, 4, ((0.5,), (0.2, 0.0)), ((0, 0), (1, 0), (1, 1)), ((0, 1.0), (3, 0.0))
    ),
    "one head": HeadProfile("a-b", "one", 64, 4, ((0.0,),), ((0, 0),), ((0, 1.0),)),
}


@pytest.mark.parametrize("name", PROFILES)
def test_any_profile_can_be_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.png"
    plot_profile(PROFILES[name], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_only_png(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="PNG"):
        plot_profile(PROFILES["even"], tmp_path / "profile.pdf")

"""The option --weights: GGUF files keep theirs unless something else is asked for."""

from pathlib import Path

import pytest

from lacache.cli.weights import Weights
from lacache.errors import ConfigError

GIVEN = [
    (None, (None, None)),
    ("model", (None, None)),
    ("int4", ("int4", None)),
    ("int8", (None, "int8")),
]


@pytest.mark.parametrize(("given", "expected"), GIVEN)
def test_other_models(given: str | None, expected: tuple[str | None, str | None]) -> None:
    weights = Weights.parse(given, "owner/name")
    assert (weights.at_loading, weights.in_engine) == expected


@pytest.mark.parametrize(("given", "expected"), [(None, ("file", None)), *GIVEN[1:]])
@pytest.mark.parametrize("model", [None, "default", "a.gguf"])
def test_gguf_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str | None,
    given: str | None,
    expected: tuple[str | None, str | None],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gguf").touch()
    weights = Weights.parse(given, model)
    assert (weights.at_loading, weights.in_engine) == expected
    assert Weights.parse("file", model).at_loading == "file"


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights='int2' must be one of model, file, int4, int8"):
        Weights.parse("int2", None)
    with pytest.raises(
        ConfigError, match="'file' is for GGUF files, and model 'owner/name' is none"
    ):
        Weights.parse("file", "owner/name")

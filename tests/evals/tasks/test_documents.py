import sys
from types import ModuleType
from typing import Any

import pytest

from lacache.errors import InputError, MissingExtraError
from lacache.evals.tasks import documents
from lacache.evals.tasks.documents import HUB_DOCUMENTS, load_named_document


def test_other_names_are_built_in_documents_or_files() -> None:
    with pytest.raises(InputError, match="is neither a file nor one of"):
        load_named_document("wikitext-3")


@pytest.mark.parametrize("name", HUB_DOCUMENTS)
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*modules: str, why: str, extra: str) -> None:
        raise MissingExtraError(f"{why} needs {modules[0]}: lacache[{extra}]")

    monkeypatch.setattr(documents, "require_modules", missing)
    with pytest.raises(MissingExtraError, match=r"needs datasets: lacache\[hub\]"):
        load_named_document(name)


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in that answers as the package does."""
    module: Any = ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(documents, "require_modules", lambda *a, **k: None)
    return module  # type: ignore[no-any-return]


def test_lines_of_a_data_set_are_joined(datasets: Any) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append((path, options))
        return {"text": ["one", "two"]}

    datasets.load_dataset = load_dataset
    assert load_named_document("wikitext-2").content == "one\ntwo"
    assert load_named_document("pg19").content == "one\n\ntwo"
    assert asked[0][1] == {"name": "wikitext-2-raw-v1", "split": "test"}


def test_an_error_of_the_hub_is_reported(datasets: Any) -> None:
    def load_dataset(path: str, **options: Any) -> Any:
        raise ConnectionError("no\nnetwork")

    datasets.load_dataset = load_dataset
    with pytest.raises(
        InputError, match=r"could not be loaded .* \(no network\); check the network"
    ):
        load_named_document("wikitext-2")

"""A press keeps and computes what LaCache does after a dense prefill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cache.tiny_models import random_ids, tiny_model
from tests_kvpress.both import Case, lacache_side, press_side

FAMILIES = (
    "llama",
    "llama-llama3-rope",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",  # half of each key is rotated
)
DEEP = {"num_hidden_layers": 9}
TRAINED_LENGTH = 100
RENUMBERED = "a context beyond the trained length"
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "slots": {"options": {"positions": "slots"}},
    "a ratio that binary numbers do not have": {"ratio": 0.7},
    "little evicted": {"ratio": 0.1, "options": {"span": 4, "overlap": 2}},
    "nearly all evicted": {"ratio": 0.99, "options": {"span": 2, "overlap": 1}},
    "paper": {"options": {"span": 4, "overlap": 0}},
    "gentle": {"options": {"span": 4, "overlap": 3, "evict_batch": 30}},
    "consecutive": {"options": {"span": 3, "overlap": 1, "geometry": "consecutive"}},
    "units": {"options": {"span": 3, "overlap": 0, "unit": 3, "evict_batch": 12}},
    "windows": {"options": {"span": 4, "overlap": 0, "window_layers": [0, 4], "evict_batch": 9}},
    "no sinks": {"ratio": 0.6, "options": {"sinks": 0, "recent": 5, "evict_batch": 1000}},
    "a long question": {
        "options": {"span": 2, "overlap": 0, "recent": 8, "evict_batch": 40},
        "context": 163,
        "question": 11,
        "most": 40,
    },
    "one token": {"question": 1},
    "several passes": {"context": 901, "ratio": 0.9, "options": {"evict_batch": 8}},
    "less than the smallest capacity": {"context": 9, "options": {"recent": 8}},
    "shorter than the sinks": {"context": 2},
}


@pytest.fixture(scope="module")
def compared(
    main_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Case, dict[str, Any]]]:
    """Run LaCache on every case, in one process, as its start takes long."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(folder / family)
    tiny_model("llama", **DEEP).save_pretrained(folder / "deep")
    cases = {family: case(folder / family, {"evict_batch": 12}) for family in FAMILIES}
    for name, settings in SETTINGS.items():
        cases[name] = case(folder / "deep", **settings)
    short = tiny_model("llama", **DEEP, max_position_embeddings=TRAINED_LENGTH)
    short.save_pretrained(folder / "short")
    # A compaction is due after that many tokens.
    cases[RENUMBERED] = case(folder / "short", context=160)
    found = lacache_side(main_python, list(cases.values()), folder)
    return dict(zip(cases, zip(cases.values(), found, strict=True), strict=True))


def case(
    model: Path,
    options: dict[str, Any] | None = None,
    *,
    context: int = 150,
    question: int = 3,
    ratio: float = 0.5,
    most: int = 24,
) -> Case:
    return Case(
        model,
        random_ids(context)[0].tolist(),
        random_ids(question, seed=1)[0].tolist(),
        ratio,
        options or {},
        most,
    )


@pytest.mark.parametrize("name", [*FAMILIES, *SETTINGS, RENUMBERED])
def test_equal(name: str, compared: dict[str, tuple[Case, dict[str, Any]]]) -> None:
    asked, found = compared[name]
    pressed = press_side(asked, len(found["tokens"]), found["question"])
    assert pressed["held"] == [len(tokens) for tokens in found["kept"]]
    torch.testing.assert_close(pressed["logits"], torch.tensor(found["logits"]), atol=1e-4, rtol=0)
    assert pressed["tokens"] == found["tokens"]


def test_the_cases_cover_what_their_names_say(
    compared: dict[str, tuple[Case, dict[str, Any]]],
) -> None:
    evicted = {name: len(c.context) - len(f["kept"][0]) for name, (c, f) in compared.items()}
    kept_all = {name for name, number in evicted.items() if number == 0}
    assert kept_all == {"shorter than the sinks", "less than the smallest capacity"}
    assert len(compared["a long question"][1]["question"]) == 11
    assert len(compared["a long question"][1]["tokens"]) > 20


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("llama", {"rerotate": False}),
        ("llama", {"positions": "slots"}),
        ("slots", {"positions": "original"}),
        ("slots", {"rerotate": False}),
        (RENUMBERED, {"rerotate": False}),
    ],
)
def test_other_positions_give_other_logits(
    name: str, other: dict[str, Any], compared: dict[str, tuple[Case, dict[str, Any]]]
) -> None:
    """A press that forgets to re-rotate keys would fail `test_equal`."""
    asked, found = compared[name]
    pressed = press_side(
        replace(asked, options=asked.options | other), len(found["tokens"]), found["question"]
    )
    assert pressed["held"] == [len(tokens) for tokens in found["kept"]]
    assert not torch.allclose(pressed["logits"], torch.tensor(found["logits"]), atol=1e-2)


def test_a_renumbered_context_equals_slots(
    compared: dict[str, tuple[Case, dict[str, Any]]],
) -> None:
    asked, found = compared[RENUMBERED]
    slots = replace(asked, options=asked.options | {"positions": "slots"})
    pressed = press_side(slots, len(found["tokens"]), found["question"])
    torch.testing.assert_close(pressed["logits"], torch.tensor(found["logits"]), atol=1e-4, rtol=0)

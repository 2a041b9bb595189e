import pytest
import torch

from lacache.calibration import haystack as module
from lacache.calibration.haystack import sample_haystack
from lacache.errors import ConfigError, ModelError
from tests.cache.tiny_models import tiny_model
from tests.engine.tiny import VOCABULARY, tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("num_tokens", [1, 40, 400])
def test_it_has_enough_tokens(num_tokens: int) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    text = sample_haystack(model, tokenizer, num_tokens=num_tokens, seed=0)
    assert len(tokenizer(text).input_ids) >= num_tokens
    assert "\n" not in text


def test_the_seed_decides(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    state = torch.get_rng_state()
    texts = [sample_haystack(model, tokenizer, num_tokens=50, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert not caplog.records


@pytest.mark.parametrize("family", ["gemma3", "gpt-oss"])
def test_other_families_can_be_sampled(family: str) -> None:
    model = tiny_model(family, vocab_size=len(VOCABULARY))
    assert sample_haystack(model, tiny_tokenizer(), num_tokens=20, seed=0)


def test_special_tokens_beyond_the_logits_are_skipped() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    model = tiny_llama()
    assert max(tokenizer.all_special_ids) == model.config.vocab_size
    text = sample_haystack(model, tokenizer, num_tokens=20, seed=0)
    assert text == sample_haystack(model, tiny_tokenizer(), num_tokens=20, seed=0)


def test_a_model_without_finite_logits_is_refused() -> None:
    model = tiny_llama()
    model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(
        ModelError, match=r"NaN or infinite .*; load the model with dtype='float32'"
    ):
        sample_haystack(model, tiny_tokenizer(), num_tokens=20, seed=0)


def test_a_model_that_generates_white_space_only_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = tiny_tokenizer()(" ").input_ids[0]
    monkeypatch.setattr(module, "_sample", lambda *_: [[space] * 48])
    with pytest.raises(ModelError, match="hold 0 tokens of text and must hold 20; calibrate with"):
        sample_haystack(tiny_llama(), tiny_tokenizer(), num_tokens=20, seed=0)


def test_impossible_numbers_are_refused() -> None:
    for options in ({"num_tokens": 0, "seed": 0}, {"num_tokens": 1, "seed": -1}):
        with pytest.raises(ConfigError, match="must be"):
            sample_haystack(tiny_llama(), tiny_tokenizer(), **options)

"""What cannot be right is refused, with the value, the rule and the remedy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from lacache import Engine, Group, Groups, LaCache, Ladder, Streaming
from lacache.cache.group_state import CompactionTables
from lacache.errors import (
    ConfigError,
    InputError,
    LaCacheError,
    ModelError,
    UnsupportedModelError,
    UnsupportedOperationError,
)
from lacache.evals.baselines import KeyDiff, ScoredCache
from lacache.models.decoder import cache_argument
from tests.cache.tiny_models import FAMILIES, LONGROPE, SHAPE, random_ids, tiny_model

CONFIG = (16, Ladder(span=2, sinks=2, recent=5, evict_batch=3))
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "no rope parameters": (
        lambda: tf.GPTJConfig(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, n_positions=64
        ),
        "GPTJ",
    ),
    "all sliding": (
        lambda: tf.MistralConfig(**SHAPE, sliding_window=8),
        "no attention layer whose cache grows",
    ),
    "state space": (
        lambda: tf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
        "no attention layer whose cache grows",
    ),
    "attention beside a state": (
        lambda: tf.FalconH1Config(
            **SHAPE,
            head_dim=8,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
        ),
        "LinearAttentionAndFullAttentionLayer",
    ),
    "learned positions": (
        lambda: tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4),
        "no rotary embedding",
    ),
    "alibi": (
        lambda: tf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=3, n_head=4),
        "no rotary embedding",
    ),
    "latent attention": (lambda: tf.DeepseekV3Config(**SHAPE | MLA), "latent attention"),
    "scaled queries": (
        lambda: tf.Ministral3Config(**SHAPE, head_dim=8),
        "scales its queries by absolute position",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_not_understood(name: str) -> None:
    config, message = MODELS[name]
    model = tf.AutoModelForCausalLM.from_config(config()).eval()
    with pytest.raises(UnsupportedModelError, match=message):
        LaCache(model, budget=64)


def test_an_encoder_decoder_model() -> None:
    config = tf.T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        LaCache(tf.T5ForConditionalGeneration(config), budget=64)


def test_something_that_is_no_model() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear is not a transformers model"):
        LaCache(torch.nn.Linear(2, 2), budget=64)


def test_a_model_in_which_absolute_positions_matter() -> None:
    model = tiny_model("llama")

    def add_positions(module: Any, args: Any, kwargs: Any) -> Any:
        places = kwargs["position_ids"].float()[..., None].sin()
        return (args[0] + places, *args[1:]), kwargs

    model.model.layers[3].register_forward_pre_hook(add_positions, with_kwargs=True)
    with pytest.raises(UnsupportedModelError, match="layer 3 do not follow"):
        LaCache(model, budget=64)


def test_left_padding() -> None:
    model = tiny_model("llama")
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :5] = 0
    ids = random_ids(30, batch_size=2)
    cache = LaCache(model, *CONFIG)
    with pytest.raises(InputError, match="sequence 1 of the attention mask has 5 padding tokens"):
        model.generate(ids, attention_mask=mask, **cache_argument(model, cache), max_new_tokens=2)
    with pytest.raises(InputError, match="give sequences of equal lengths"):
        model(ids, attention_mask=mask, **cache_argument(model, cache))
    # Nothing was lost: the same cache reads a batch without padding.
    whole = torch.ones(2, 30, dtype=torch.long)
    assert model(ids, attention_mask=whole, **cache_argument(model, cache)).logits.shape == (
        2,
        30,
        64,
    )


def test_custom_masks() -> None:
    model = tiny_model("llama")
    mask = torch.zeros(1, 1, 30, 30)
    with pytest.raises(UnsupportedOperationError, match="custom attention mask"):
        model(
            random_ids(30),
            attention_mask=mask,
            **cache_argument(model, LaCache(model, *CONFIG)),
        )


@pytest.mark.parametrize(
    "options", [{"assistant_model": True}, {"prompt_lookup_num_tokens": 3}], ids=str
)
def test_assisted_decoding(options: dict[str, Any]) -> None:
    model = tiny_model("llama")
    if "assistant_model" in options:
        options = {"assistant_model": tiny_model("llama", seed=1)}
    cache = LaCache(model, *CONFIG)
    with pytest.raises(UnsupportedOperationError, match="assisted decoding, prompt lookup"):
        model.generate(random_ids(30), **cache_argument(model, cache), max_new_tokens=4, **options)


def test_crop() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    with pytest.raises(UnsupportedOperationError, match="taking tokens back"):
        cache.crop(-2)


def test_generate_with_a_text_that_does_not_go_on() -> None:
    model = tiny_model("llama")
    ids = random_ids(30)
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, ids)
    with pytest.raises(InputError, match="generate\\(\\) needs the whole sequence so far"):
        model.generate(ids, **cache_argument(model, cache), max_new_tokens=2)


def test_positions_that_jump() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    with pytest.raises(InputError, match="must be 3 consecutive numbers"):
        model(random_ids(3), position_ids=torch.tensor([[0, 2, 3]]), **cache_argument(model, cache))
    with pytest.raises(InputError, match="starts at position 9"):
        model(
            random_ids(3), position_ids=torch.tensor([[9, 10, 11]]), **cache_argument(model, cache)
        )


def test_outputs_that_require_one_chunk() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    with pytest.raises(UnsupportedOperationError, match="output_hidden_states=True"):
        model(random_ids(30), **cache_argument(model, cache), output_hidden_states=True)
    short = model(random_ids(9), **cache_argument(model, cache), output_hidden_states=True)
    assert len(short.hidden_states) == 6


def test_another_batch_size_than_before() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, random_ids(9))
    with pytest.raises(InputError, match="2 sequences, but the cache holds 1"):
        cache.prefill(model, random_ids(9, batch_size=2))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\)"),
        (torch.zeros(3, dtype=torch.long), r"shape \(3,\)"),
        ([1, 2], "list"),
        (torch.tensor([[64]]), "must lie in 0 to 63"),
        (torch.tensor([[-1]]), "must lie in 0 to 63"),
        (torch.tensor([[0.5]]), "must be integers"),
    ],
    ids=str,
)
def test_token_ids_that_cannot_be(ids: Any, message: str) -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    with pytest.raises(InputError, match=message):
        cache.prefill(model, ids)
    assert cache.report().num_seen == 0


def test_another_model_than_its_own() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    other = tiny_model("qwen2")
    LaCache(other, *CONFIG)
    with pytest.raises(ModelError, match="made from another model"):
        cache.prefill(other, random_ids(9))
    with pytest.raises(ModelError, match="made from another model"):
        other(random_ids(9), **cache_argument(other, cache))
    with pytest.raises(ModelError, match="no language-model head"):
        cache.prefill(model.model, random_ids(9))


def test_updates_outside_of_a_forward() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    states = torch.zeros(1, 2, 1, 8)
    with pytest.raises(UnsupportedOperationError, match="outside of its model's forward"):
        cache.update(states, states, 0)


def test_an_interrupted_forward_is_noticed_and_reset_mends_it() -> None:
    model = tiny_model("llama")
    ids = random_ids(40)
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, ids)

    def interrupt(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[2].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.prefill(model, ids[:, :1])
    handle.remove()
    with pytest.raises(UnsupportedOperationError, match="interrupted half-way"):
        cache.prefill(model, ids[:, :1])
    cache.reset()
    fresh = LaCache(model, *CONFIG)
    assert torch.equal(cache.prefill(model, ids), fresh.prefill(model, ids))


def test_a_forward_that_fails_before_the_first_layer_costs_nothing() -> None:
    model = tiny_model("llama")
    ids = random_ids(40)
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, ids)
    with pytest.raises(IndexError), torch.no_grad():
        model(torch.tensor([[999]]), **cache_argument(model, cache))
    found = cache.prefill(model, torch.tensor([[5]]))
    fresh = LaCache(model, *CONFIG)
    fresh.prefill(model, ids)
    assert torch.equal(found, fresh.prefill(model, torch.tensor([[5]])))


def test_an_interrupted_forward_of_a_hybrid_is_noticed_before_any_of_our_layers() -> None:
    model = tiny_model("gemma3")
    ids = random_ids(40)
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, ids)

    def interrupt(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    # Layer 0 slides and has taken the token in by then.
    handle = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.prefill(model, ids[:, :1])
    handle.remove()
    with pytest.raises(UnsupportedOperationError, match="interrupted half-way"):
        cache.prefill(model, ids[:, :1])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_interrupted_first_prompt_leaves_nothing_behind(family: str) -> None:
    model = tiny_model(family)
    ids = random_ids(40)
    expected = LaCache(model, *CONFIG).prefill(model, ids)
    cache = LaCache(model, *CONFIG)

    def interrupt(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[3].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.prefill(model, ids[:, :9])
    handle.remove()
    with pytest.raises(UnsupportedOperationError, match="interrupted half-way"):
        cache.prefill(model, ids[:, :9])
    assert torch.equal(cache.prefill(model, ids), expected)


def test_an_interrupted_compaction_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, random_ids(16))

    def interrupt(self: Any, state: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CompactionTables, "surviving", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.prefill(model, random_ids(1))
    monkeypatch.undo()
    with pytest.raises(UnsupportedOperationError, match="interrupted half-way"):
        cache.prefill(model, random_ids(1))
    cache.reset()
    cache.prefill(model, random_ids(40))


@pytest.mark.parametrize("num_tokens", range(1, 34))
def test_an_unrelated_prompt_on_a_used_cache(num_tokens: int) -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    cache.prefill(model, random_ids(33))
    other = random_ids(num_tokens, seed=9)
    with pytest.raises(InputError):
        model.generate(other, **cache_argument(model, cache), max_new_tokens=2, do_sample=False)
    assert cache.report().num_seen == 33


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_which_hides_the_cache_from_the_layers() -> None:
    model = tiny_model("llama")
    cache = LaCache(model, *CONFIG)
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(UnsupportedOperationError, match="gradient checkpointing"):
        model(random_ids(9), **cache_argument(model, cache), use_cache=True)


def test_outputs_that_the_config_asks_for() -> None:
    model = tiny_model("llama", output_hidden_states=True)
    cache = LaCache(model, *CONFIG)
    with pytest.raises(UnsupportedOperationError, match="output_hidden_states=True"):
        model(random_ids(30), **cache_argument(model, cache))


def test_a_call_without_input() -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match="neither input_ids nor inputs_embeds"):
        model(**cache_argument(model, LaCache(model, *CONFIG)))


def test_one_growing_layer_has_no_ladder_and_a_window_by_default() -> None:
    types = ["full_attention", *["sliding_attention"] * 6]
    config = FAMILIES["gemma3"]()
    config.layer_types = types
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match=r"at least 2 layers .*'streaming'"):
        LaCache(model, budget=64, policy="ladder")
    tokens = random_ids(100)
    caches = [LaCache(model, budget=64, policy=name) for name in ("streaming", "balanced")]
    for cache in caches:
        cache.prefill(model, tokens)
        assert cache.report().num_cached <= 64
    first, second = (cache.kept_tokens(0) for cache in caches)
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no budget was given"),
        ({"budget": 0}, "budget=0 must be at least 1"),
        ({"budget": -4}, "budget=-4 must be at least 1"),
        ({"budget": 4}, "budget=4 must be at least 8 tokens for this policy and model"),
        ({"budget": 1.5}, r"must be in \(0, 1\]"),
        ({"budget": "lots"}, "budget='lots' must be a number of tokens, a share or"),
        ({"budget": "10B"}, "holds 0 tokens"),
        ({"budget": 64, "policy": "ladder:span=2:overlap=2"}, "overlap=2 must be below span=2"),
        ({"budget": 64, "policy": "ladder:span=5"}, "span=5 must be below the number of layers 5"),
        ({"budget": 64, "policy": "best"}, "policy='best' must be one of"),
        ({"budget": 64, "policy": "streaming:span=2"}, "has no setting 'span'"),
        ({"budget": 64, "policy": "full"}, "budget=64 cannot be given with policy 'full'"),
        ({"budget": 64, "policy": None}, "policy=None must be a policy or its text"),
        ({"budget": 64, "prefill": "fast"}, "prefill='fast' must be"),
        ({"budget": 64, "policy": Ladder(window_layers=(7,))}, "window_layers=7 must be below"),
        ({"budget": "9" * 400 + "MB"}, "must be a number of tokens, a share or"),
        (
            {"budget": 64, "policy": Groups((Group(Streaming(), tuple(range(5)), 64),))},
            "budget=64 cannot be given with policy 'groups:0-4@64@streaming'",
        ),
    ],
    ids=str,
)
def test_configurations_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        LaCache(tiny_model("llama"), **options)
    assert isinstance(caught.value, LaCacheError)
    assert isinstance(caught.value, ValueError)


def test_tokens_of_a_native_layer() -> None:
    cache = LaCache(tiny_model("gemma3"), *CONFIG)
    with pytest.raises(UnsupportedOperationError, match=r"try one of \[1, 2, 4, 6\]"):
        cache.kept_tokens(0)
    with pytest.raises(InputError, match="layer_idx=7 must be in 0 to 6"):
        cache.kept_tokens(7)


@pytest.mark.parametrize("family", ["phi3-longrope", "llama-dynamic"])
def test_rotary_frequencies_that_would_change(family: str) -> None:
    tiny = tiny_model(family)
    for budget, policy in ((41, "ladder"), (None, "full")):
        with pytest.raises(ConfigError, match=r"must be at most 40, the positions .*budget=20"):
            LaCache(tiny, budget, policy)
        with pytest.raises(ConfigError, match=r"must be at most 40|keeps every token"):
            Engine(tiny, budget, policy)
    with pytest.raises(ConfigError, match="must be at most 40"):
        ScoredCache(tiny, KeyDiff(), 41)
    share = LaCache(tiny, 0.5, "streaming")
    for _ in range(2):
        with pytest.raises(ConfigError, match="capacity=60 must be at most 40"):
            share.prefill(tiny, random_ids(120))
    cache = LaCache(tiny, 20, "streaming", prefill="dense")
    with pytest.raises(InputError, match=r"of 41 tokens must be at most 40.*prefill='chunked'"):
        cache.prefill(tiny, random_ids(41))
    cache.reset()
    assert cache.prefill(tiny, random_ids(40)).isfinite().all()


def test_positions_that_never_start_over_and_frequencies_that_change() -> None:
    rope = dict.fromkeys(("sliding_attention", "full_attention"), LONGROPE)
    tiny = tiny_model("gemma3", rope_parameters=rope)
    with pytest.raises(UnsupportedModelError, match=r"after \d+ positions, .*another rope_type"):
        LaCache(tiny, 20)

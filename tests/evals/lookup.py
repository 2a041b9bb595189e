"""A model made by hand that finds a digit in its context, and only where its cache holds it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lacache.evals.tasks.task import Question, Sample, Task
from lacache.models import LoadedModel
from tests.engine.tiny import VOCABULARY, tiny_tokenizer

LAYERS = 6
LOOKING = 3
"""The layer whose attention looks for the digit; the others pass everything on."""
_IS_DIGIT, _ASKS, _OTHER, _WIDTH = 10, 11, 12, 16
_SLOW = _WIDTH // 2 - 1
"""First of a pair of dimensions that turns by less than 1e-10 per position: where the digit
stands does not matter."""


def lookup_model() -> Any:
    """After a line feed it says the digit of its context, if layer LOOKING still holds it."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=_WIDTH,
        intermediate_size=4,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=_WIDTH,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1.0)
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, _OTHER] = 1.0
        for digit in range(10):
            token = VOCABULARY.index(str(digit))
            embedding[token] = 0.0
            embedding[token, [digit, _IS_DIGIT]] = 1.0
            head[token, digit] = 10.0
        asks = VOCABULARY.index("Ċ")
        embedding[asks] = 0.0
        embedding[asks, _ASKS] = 1.0
        for number, layer in enumerate(model.model.layers):
            layer.input_layernorm.weight.fill_(1.0)
            attention = layer.self_attn
            attention.q_proj.weight[_SLOW, _ASKS] = 10.0
            attention.k_proj.weight[_SLOW, _IS_DIGIT] = 10.0
            # Something that turns quickly: a layer with positions like any other.
            attention.k_proj.weight[0, [_IS_DIGIT, _ASKS, _OTHER]] = 1.0
            if number == LOOKING:
                attention.v_proj.weight.fill_diagonal_(1.0)
                attention.o_proj.weight.fill_diagonal_(1.0)
    return model


def loaded_lookup() -> LoadedModel:
    return LoadedModel(lookup_model(), tiny_tokenizer(), "lookup", Path())


@final
@dataclass(frozen=True)
class Digit(Task):
    """One digit amid letters, at a token number, and a line feed that asks for it."""

    name: ClassVar[str] = "digit"

    place: int = 10
    questions: int = 1

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int) -> list[Sample]:
        # The line feed and the answer of each question belong to the length.
        letters = length - 1 - 2 * self.questions
        return [
            Sample(
                "x" * self.place + str(number % 10) + "x" * (letters - self.place),
                (Question("\n", (str(number % 10),), 1),) * self.questions,
            )
            for number in range(count)
        ]

    def score(self, prediction: str, question: Question) -> float:
        return float(prediction == question.answers[0])

"""The ladder as a press of kvpress (`docs/kvpress.md`).

kvpress and the rest of this package need versions of transformers that exclude each other. So this
module imports nothing of transformers, and of lacache only `policies`, `common` and `errors`.
"""

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.common.validation import validate_number
from lacache.errors import ConfigError, InputError, MissingExtraError, UnsupportedModelError
from lacache.policies import Ladder, ModelShape, Schedule, bind_policy, kept_after
from lacache.policies.policy import DEFAULT_POSITIONS, EVICT_BATCH, SINKS
from lacache.policies.query_positions import UNKNOWN_LENGTH, QueryPositions

try:
    from kvpress import SUPPORTED_MODELS, BasePress
except ImportError as error:
    raise MissingExtraError(
        f"lacache.integrations.kvpress needs kvpress, and importing it failed ({error}); "
        "try, in an environment of its own: pip install kvpress, then "
        "pip install --no-deps lacache"
    ) from error

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary types whose frequencies change with the length of the context."""


@final
@dataclass
class LadderPress(BasePress):
    """Keeps a ladder of the context: equally many tokens in every layer, but different old ones.

    Keeps what `LaCache(model, 1 - compression_ratio, policy="ladder", prefill="dense")` holds when
    it processes the first token after the context. A press acts once, so nothing is evicted while
    questions are processed and answers generated.

    Args:
        compression_ratio: share of the context to evict, in [0, 1). The number of tokens that stay
            is rounded up, and is never below the smallest capacity of the ladder; 0 evicts nothing.
        span: see `lacache.Ladder`, as for the others; by default half of the layers.
        overlap: without span and overlap, four fifths of the span.
        sinks: first tokens, never evicted.
        recent: newest tokens that no compaction touches, or a share of the capacity; by default
            half of it.
        evict_batch: slots that one compaction frees, or a share of the capacity; 1 keeps nearest
            to the ratio.
        geometry: "interleaved" (the released code) or "consecutive" (the paper's text).
        unit: neighbouring tokens that are kept or evicted together.
        window_layers: layers that evict their oldest tokens, as StreamingLLM does.
        positions: "original" moves only the sinks, to right before the oldest other token; "slots"
            gives all kept tokens consecutive positions.
        rerotate: re-rotate the keys that `positions` moves, as LaCache does; false leaves all of
            them where they are, as kvpress's own presses do.

    Raises:
        ConfigError: a value that cannot work; from applying the press where it depends on the
            model.
    """

    compression_ratio: float = 0.0
    span: int | None = None
    overlap: int | None = None
    sinks: int = SINKS
    recent: float | None = None
    evict_batch: float = EVICT_BATCH
    geometry: str = "interleaved"
    unit: int = 1
    window_layers: tuple[int, ...] = ()
    positions: str = DEFAULT_POSITIONS
    rerotate: bool = True

    def __post_init__(self) -> None:
        self._validate_ratio()
        Ladder.like(self)

    def post_init_from_model(self, model: Any) -> None:
        """Refuse a model that the press does not work with; kvpress calls it before a forward.

        Raises:
            ConfigError: the settings do not work with its number of layers.
            UnsupportedModelError: its layers or rotary positions are not supported.
        """
        # kvpress's evaluation sets the ratio of a press after its construction.
        self._validate_ratio()
        config = model.config.get_text_config(decoder=True)
        _validate_layers(config)
        if self.rerotate:
            _validate_rotary(model)
        self._schedule(config.num_hidden_layers, num_tokens=1)

    def compress(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values that a layer keeps of the context.

        Args:
            module: the layer's attention.
            hidden_states: [B, N, hidden], not used.
            keys: [B, Hkv, N, D], rotated to positions 0 to N - 1.
            values: [B, Hkv, N, D].
            attentions: not used.
            kwargs: of the attention's forward.

        Returns:
            Keys and values [B, Hkv, K, D], with the same K in all layers.

        Raises:
            InputError: the batch is padded.
        """
        num_tokens = keys.shape[2]
        if self.compression_ratio == 0:
            return keys, values
        _refuse_padding(kwargs.get("attention_mask"))
        layer: Any = module
        config = layer.config
        schedule = self._schedule(config.num_hidden_layers, num_tokens)
        trained_length = getattr(config, "max_position_embeddings", None) or UNKNOWN_LENGTH
        kept, at_slots = _kept(schedule, num_tokens, trained_length)
        tokens = torch.tensor(kept[layer.layer_idx], device=keys.device)
        keys, values = keys[:, :, tokens], values[:, :, tokens]
        if not self.rerotate:
            return keys, values
        if at_slots:
            # The next token has position N, so the last slot has position N - 1.
            positions = torch.arange(num_tokens - len(tokens), num_tokens, device=keys.device)
        else:
            # Once a ladder has evicted, it still has more than its sinks.
            oldest = int(tokens[schedule.sinks]) if len(tokens) < num_tokens else schedule.sinks
            positions = torch.arange(oldest - schedule.sinks, oldest, device=keys.device)
            positions = positions[: len(tokens)]
        moved = len(positions)
        keys[:, :, :moved] = _rotate(layer, keys[:, :, :moved], positions - tokens[:moved])
        return keys, values

    def _validate_ratio(self) -> None:
        ratio = self.compression_ratio
        validate_number("compression_ratio", ratio, 0.5)
        if not 0 <= ratio < 1:
            raise ConfigError(
                f"compression_ratio={ratio} must be in [0, 1), the share to evict; try "
                "compression_ratio=0.5"
            )

    def _schedule(self, num_layers: int, num_tokens: int) -> Schedule:
        bound = bind_policy(
            Ladder.like(self),
            # A ratio of 0.7 is a budget of 0.3, not of 0.30000000000000004.
            round(1.0 - self.compression_ratio, 12),
            ModelShape.of_layers(num_layers),
            bytes_per_token=1,
            prompt_tokens=num_tokens,
        )
        return bound.groups[0].schedule


@lru_cache(maxsize=1)
def _kept(
    schedule: Schedule, num_tokens: int, trained_length: int
) -> tuple[tuple[list[int], ...], bool]:
    """Return what is in the cache when token `num_tokens` is inserted.

    Every layer asks for the same, so one result is remembered.

    Returns:
        The tokens that each layer keeps, and whether all of them stand at their slots.
    """
    kept = kept_after(schedule, num_tokens)
    _, base = QueryPositions((schedule,), trained_length, count_on=False).find(0, [kept.state])
    kept.settle()
    tokens = tuple(kept.by_pattern[pattern] for pattern in schedule.patterns)
    return tokens, schedule.positions == "slots" or base > 0


def _validate_layers(config: Any) -> None:
    """Refuse a model with sliding-window layers.

    kvpress makes the mask of several tokens for one length of all layers. After a press on the
    other layers alone, it does not fit.

    Raises:
        UnsupportedModelError: not all layers of the decoder's `config` have full attention.
    """
    types = getattr(config, "layer_types", None)
    if types is None:
        is_window = getattr(config, "sliding_window", None) is not None
        types = ["sliding_attention" if is_window else "full_attention"]
    others = sorted(set(types) - {"full_attention"})
    if others:
        raise UnsupportedModelError(
            f"the model has layers of type {', '.join(others)}, and this press needs full "
            "attention in all of them; try lacache.LaCache with transformers itself"
        )


def _validate_rotary(model: Any) -> None:
    """Refuse models whose rotary positions may differ from those of `_rotate`.

    Raises:
        UnsupportedModelError: kvpress does not support the model, or its rotary frequencies change
            with the length of the context.
    """
    if not issubclass(type(model), SUPPORTED_MODELS):
        names = ", ".join(one.__name__ for one in SUPPORTED_MODELS)
        raise UnsupportedModelError(
            f"{type(model).__name__} is none of the models that kvpress supports ({names}), so "
            "its keys cannot be re-rotated safely; try rerotate=False"
        )
    rope_type = model.model.rotary_emb.rope_type
    if rope_type in LENGTH_DEPENDENT:
        raise UnsupportedModelError(
            f"rope_type={rope_type!r} changes its frequencies with the length of the context, so "
            "keys cannot be re-rotated; try rerotate=False"
        )


def _refuse_padding(mask: Tensor | None) -> None:
    """Refuse a batch with padding, which would be kept in place of sinks.

    Args:
        mask: of a layer's attention: none, [B, N], or [B, 1, N, N]; boolean, or additive.

    Raises:
        InputError: the last token does not attend to all others.
    """
    if mask is None:
        return
    is_additive = mask.ndim == 4 and mask.dtype != torch.bool
    seen = mask[:, :, -1] if mask.ndim == 4 else mask
    if not bool((seen >= 0 if is_additive else seen > 0).all()):
        raise InputError(
            "the batch has padding, which would be kept in place of tokens; press sequences of "
            "equal length together, or one at a time"
        )


def _rotate(attention: Any, keys: Tensor, shifts: Tensor) -> Tensor:
    """Re-rotate keys to other positions, with the model's own tables and function.

    Args:
        attention: the layer's, to which kvpress gives the model's `rotary_emb`.
        keys: [B, Hkv, K, D].
        shifts: [K], in positions.

    Returns:
        Keys [B, Hkv, K, D], rounded once to their own type.
    """
    rotary = attention.rotary_emb
    probe = torch.empty(0, dtype=torch.float32, device=keys.device)
    origin, _ = rotary(probe, shifts.new_zeros(1, 1))
    cos, sin = rotary(probe, shifts[None])
    apply = vars(sys.modules[type(attention).__module__])["apply_rotary_pos_emb"]
    wide = keys.float()
    # Queries of no heads cost nothing. At position 0 the cosine is the model's attention scaling,
    # which the keys already have.
    rotated: Tensor = apply(wide[:, :0], wide, cos / origin, sin / origin)[1]
    return rotated.to(keys.dtype)

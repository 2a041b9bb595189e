"""The press: what `LaCache` keeps after a dense prefill, in kvpress's way of running a model."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor, nn

from lacache.common.validation import validate_number
from lacache.errors import ConfigError, MissingExtraError
from lacache.integrations.kvpress.models import (
    refuse_padding,
    turned,
    validate_layers,
    validate_rotary,
)
from lacache.policies import Ladder, ModelShape, kept_after, parse_budget
from lacache.policies.ladder import LadderSchedule
from lacache.policies.policy import EVICT_BATCH, SINKS

try:
    from kvpress import SUPPORTED_MODELS, BasePress
except ImportError as error:
    raise MissingExtraError(
        f"lacache.integrations.kvpress needs kvpress, and importing it failed ({error}); "
        "try, in an environment of its own: pip install kvpress, then "
        "pip install --no-deps lacache"
    ) from error


@final
@dataclass
class LadderPress(BasePress):
    """Keeps a ladder of the context: equally many tokens in every layer, but different old ones.

    Which ones is what `LaCache.from_model(model, 1 - compression_ratio, policy="ladder",
    prefill="dense")` holds when it reads the first token after the context. A press acts once,
    so nothing is dropped while questions are read and answers written.

    Args:
        compression_ratio: share of the context that is dropped, in [0, 1). What stays is rounded
            up, and never less than the ladder can work with; 0 drops nothing.
        span: see `lacache.Ladder`, as the others; without it, half of the layers.
        overlap: without span and overlap, four fifths of the span.
        sinks: first tokens, never dropped.
        recent: newest tokens that are not thinned; without it, half of what may stay.
        evict_batch: slots that one compaction frees; with 1 the ladder stays nearest to the ratio.
        geometry: "interleaved" (the released code) or "consecutive" (the paper's text).
        unit: neighbouring tokens that are kept or dropped together.
        window_layers: layers that drop their oldest tokens instead of thinning.
        rerotate: turn keys so that kept tokens stand side by side, as in LaCache; without it they
            stay at their places in the text, as kvpress's own presses leave them.

    Raises:
        ConfigError: a value that cannot work, from the constructor, or from applying the press
            where it depends on the model.
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
    rerotate: bool = True

    def __post_init__(self) -> None:
        self._validate_ratio()
        self._ladder()

    def post_init_from_model(self, model: Any) -> None:
        """Refuse what cannot work with this model; kvpress calls it before the model runs.

        Raises:
            ConfigError: the settings do not go with its number of layers.
            UnsupportedModelError: its layers or positions are not understood.
        """
        # kvpress's evaluation sets the ratio of a press that is made already.
        self._validate_ratio()
        config = model.config.get_text_config(decoder=True)
        validate_layers(config)
        if self.rerotate:
            validate_rotary(model, SUPPORTED_MODELS)
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
        """What a layer keeps of a context that it has just read.

        Args:
            module: the layer's attention.
            hidden_states: [B, N, hidden], not looked at.
            keys: [B, Hkv, N, D], turned to positions 0 to N - 1.
            values: [B, Hkv, N, D].
            attentions: not looked at.
            kwargs: of the attention's forward.

        Returns:
            The kept keys and values [B, Hkv, K, D], with K the same in all layers.

        Raises:
            InputError: the batch is padded.
        """
        num_tokens = keys.shape[2]
        if self.compression_ratio == 0:
            return keys, values
        refuse_padding(kwargs.get("attention_mask"))
        layer: Any = module
        num_layers = layer.config.num_hidden_layers
        kept = _kept(self._schedule(num_layers, num_tokens), num_tokens)
        tokens = torch.tensor(kept[layer.layer_idx], device=keys.device)
        keys, values = keys[:, :, tokens], values[:, :, tokens]
        if self.rerotate:
            # Models go on counting at N, so the last slot stands at N - 1.
            slots = torch.arange(num_tokens - len(tokens), num_tokens, device=keys.device)
            keys = turned(layer, keys, slots - tokens)
        return keys, values

    def _validate_ratio(self) -> None:
        ratio = self.compression_ratio
        validate_number("compression_ratio", ratio, 0.5)
        if not 0 <= ratio < 1:
            raise ConfigError(
                f"compression_ratio={ratio} must be in [0, 1), the share that is dropped; try "
                "compression_ratio=0.5"
            )

    def _ladder(self) -> Ladder:
        return Ladder(
            span=self.span,
            overlap=self.overlap,
            sinks=self.sinks,
            recent=self.recent,
            evict_batch=self.evict_batch,
            geometry=self.geometry,
            unit=self.unit,
            window_layers=self.window_layers,
        )

    def _share(self) -> float:
        # A ratio of 0.7 is a budget of 0.3, and not of 0.30000000000000004.
        return round(1.0 - self.compression_ratio, 12)

    def _schedule(self, num_layers: int, num_tokens: int) -> LadderSchedule:
        ladder = self._ladder()
        shape = ModelShape.of_layers(num_layers)
        capacity = parse_budget(self._share()).capacity(
            bytes_per_token=1,
            prompt_tokens=num_tokens,
            smallest=ladder.smallest_capacity(shape),
        )
        return ladder.schedule(num_layers, capacity)


@lru_cache(maxsize=1)
def _kept(schedule: LadderSchedule, num_tokens: int) -> tuple[list[int], ...]:
    """Return per layer the tokens that the one after `num_tokens` finds, once for all layers."""
    kept = kept_after(schedule, num_tokens)
    kept.settle()
    return tuple(kept.by_pattern[pattern] for pattern in schedule.patterns)

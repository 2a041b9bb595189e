"""One layer's keys and values, from which each KV head evicts by its own scores."""

from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.layers import EvictingLayer
from lacache.errors import UnsupportedModelError, UnsupportedOperationError
from lacache.evals.baselines.ledger import Ledger
from lacache.evals.baselines.scorer import AttentionScorer, KeyScorer, Scorer, best
from lacache.models.rotary import Rotation, Tables


@final
class ScoredLayer(EvictingLayer):
    """Holds keys as they came in and values, each [1, H, N, D], and where and when they came in.

    The token in slot s stands at the position of the next token minus N, plus s: slots, up to a
    shift that is the same for all.
    """

    def __init__(
        self, scorer: Scorer, ledger: Ledger, depth: int, rotation: Rotation | None, sinks: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scorer = scorer
        self._ledger = ledger
        self._depth = depth
        self._rotation = rotation
        self._sinks = sinks
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized = False
        self.memory: Tensor | None = None
        """What an attention score knows of the tokens held [H, M, N]."""
        self._came_in: Tensor | None = None  # positions and token numbers [2, H, N]
        self._next = (0, 0)
        self._is_open = False
        self._tables: tuple[int, Tables] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, with the shapes, type and device of the first keys and values."""
        self.keys = key_states[:, :, :0]
        self.values = value_states[:, :, :0]
        self._came_in = torch.zeros(
            2, key_states.shape[1], 0, dtype=torch.long, device=key_states.device
        )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def open(self, first_position: int, first_number: int) -> None:
        """Say where the tokens of the next forward stand and which they are."""
        self._next = first_position, first_number
        self._is_open = True

    def close(self, *, watched: bool) -> None:
        """End a forward.

        Args:
            watched: whether attention weights should have come.

        Raises:
            UnsupportedModelError: they did not.
        """
        self._is_open = False
        known = 0 if self.memory is None else self.memory.shape[-1]
        if watched and known != self.num_stored():
            raise UnsupportedModelError(
                f"layer {self._depth} showed attention weights for {known} of {self.num_stored()} "
                "tokens, and the score needs them all; use a score of keys, such as KeyDiff"
            )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Insert, and return what the new tokens attend to.

        Args:
            key_states: new keys [1, H, Q, D], rotated by the model.
            value_states: new values [1, H, Q, D].
            args: what models pass besides, and no cache needs.
            kwargs: likewise.

        Returns:
            Keys, rotated to their slots, and values, each [1, H, N + Q, D].

        Raises:
            UnsupportedOperationError: called outside of the model's forward.
        """
        if not self._is_open:
            raise UnsupportedOperationError(
                "the cache was updated outside of its model's forward; call the model that it "
                "was made from"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, came_in = self._held()
        num_held, num_new = keys.shape[-2], key_states.shape[-2]
        starts = torch.tensor(self._next, device=keys.device)[:, None, None]
        new = starts + torch.arange(num_new, device=keys.device).expand(2, keys.shape[1], -1)
        self.keys = torch.cat([keys, key_states], dim=-2)
        self.values = torch.cat([values, value_states], dim=-2)
        self._came_in = torch.cat([came_in, new], dim=-1)
        return self._keys_at(self._next[0] - num_held), self.values

    def observe(self, weights: Tensor | None) -> None:
        """Take in the attention of the new tokens [1, Hq, Q, N], if the score needs it."""
        if isinstance(self._scorer, AttentionScorer) and weights is not None:
            num_heads = self._held()[0].shape[1]
            _, num_queries, num_new, num_keys = weights.shape
            by_head = weights.detach().view(num_heads, num_queries // num_heads, num_new, num_keys)
            self.memory = self._scorer.remember(self.memory, by_head)

    def evict(self, count: int) -> None:
        """Keep the best `count` tokens of each head."""
        num_held = self.num_stored()
        if count >= num_held:
            return
        keys, values, came_in = self._held()
        kept = best(
            self._scores(),
            count,
            sinks=self._sinks,
            protected=self._scorer.protected(num_held),
        )
        self.keys = _take(keys[0], kept)[None]
        self.values = _take(values[0], kept)[None]
        self._came_in = came_in.gather(-1, kept.expand(2, -1, -1))
        if self.memory is not None:
            rows = kept[:, None].expand(-1, self.memory.shape[1], -1)
            self.memory = self.memory.gather(-1, rows)
        self._tables = None

    def tokens(self) -> Tensor:
        """Original numbers of the tokens held [H, N], in slot order."""
        return torch.zeros(0, 0, dtype=torch.long) if self._came_in is None else self._came_in[1]

    def num_stored(self) -> int:
        """Tokens held now."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that `query_length` new tokens will attend to."""
        num_cached = self._ledger.settled()[self._depth]
        return num_cached + query_length, self._ledger.num_seen - num_cached

    def get_seq_length(self) -> int:
        """Tokens ever seen, which is how transformers counts positions."""
        return self._ledger.num_seen

    def _held(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [1, H, N, D], and positions and numbers [2, H, N]."""
        if self.keys is None or self.values is None or self._came_in is None:
            raise UnsupportedOperationError(
                "the cache holds nothing yet; read at least one token first"
            )
        return self.keys, self.values, self._came_in

    def _scores(self) -> Tensor:
        """The score of each token held [H, N]."""
        if isinstance(self._scorer, KeyScorer):
            return self._scorer.score(self._keys_at(0)[0], self._held()[1][0])
        assert isinstance(self._scorer, AttentionScorer)
        assert self.memory is not None
        return self._scorer.score(self.memory)

    def _keys_at(self, origin: int) -> Tensor:
        """Keys [1, H, N, D] with slot s rotated to the position `origin + s`."""
        keys, _, came_in = self._held()
        if self._rotation is None:
            return keys
        if self._tables is None or self._tables[0] != origin:
            self._tables = origin, _tables_to(origin, came_in[0], self._rotation)
        tables = self._tables[1]
        # Heads side by side in one row: each token of each head has its own angle.
        _, num_heads, _, head_dim = keys.shape
        num_moved = tables[0].shape[1] // num_heads
        if num_moved == 0:
            return keys
        row = keys[:, :, :num_moved].reshape(1, 1, -1, head_dim)
        moved = self._rotation.rotate(row, tables).view(1, num_heads, -1, head_dim)
        return torch.cat([moved, keys[:, :, num_moved:]], dim=-2)


def _tables_to(origin: int, came_in_at: Tensor, rotation: Rotation) -> Tables:
    """Tables from positions [H, N] to slots, up to the last slot that has moved in any head."""
    slots = torch.arange(came_in_at.shape[-1], device=came_in_at.device)
    shifts = origin + slots - came_in_at
    moved = shifts.any(dim=0).nonzero()
    num_moved = int(moved[-1]) + 1 if len(moved) else 0
    return rotation.tables(shifts[:, :num_moved].flatten())


def _take(states: Tensor, slots: Tensor) -> Tensor:
    """States [H, N, D] at slots [H, K] of each head."""
    return states.gather(1, slots[..., None].expand(-1, -1, states.shape[-1]))

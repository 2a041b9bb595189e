"""A layer of keys and values, from which each KV head evicts by its own scores."""

from typing import Any, final

import torch
from torch import Tensor

from lacache.cache.encoded import EncodedStates
from lacache.cache.layers import StoringLayer
from lacache.errors import UnsupportedModelError, UnsupportedOperationError
from lacache.evals.baselines.attention_policies import AttentionPolicy
from lacache.evals.baselines.counts import TokenCounts
from lacache.evals.baselines.key_policies import KeyPolicy
from lacache.evals.baselines.policy import ScoredPolicy, best
from lacache.models.rotary import RotaryTables, Rotation


@final
class ScoredLayer(StoringLayer):
    """Holds keys as the model gave them, values, each [1, H, N, D], and original positions.

    The token in slot s stands at the position of the next token minus N, plus s: slots, up to a
    shift that is the same for all. Baselines have no other positions (docs/adr/0022). Attention
    and scores read keys and values decoded, and keys rotated from what is stored.

    Args:
        policy: the score and its settings.
        counts: the tokens of every layer.
        depth: index of the layer among those with a growing cache.
        rotation: the layer's rotary embedding; None in a layer without positions.
        kv_dtype: what keys and values are stored in; None is the model's own type.
        key_center: what the keys have in common, float32 [H, D]; see `find_key_center`.
    """

    def __init__(
        self,
        policy: ScoredPolicy,
        counts: TokenCounts,
        depth: int,
        rotation: Rotation | None,
        kv_dtype: str | None,
        key_center: Tensor | None,
    ) -> None:
        super().__init__(kv_dtype, key_center)
        self._policy = policy
        self._counts = counts
        self._depth = depth
        self._rotation = rotation
        self.reset()

    def reset(self) -> None:
        """Remove all tokens from this layer."""
        super().reset()
        self.memory: Tensor | None = None
        """What an attention score remembers of the tokens held [H, M, N]."""
        self._original: Tensor | None = None  # positions and token numbers [2, H, N]
        self._next = (0, 0)
        self._is_open = False
        self._tables: tuple[int, RotaryTables] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty, with the shapes, type and device of the first keys and values."""
        super().lazy_initialization(key_states, value_states)
        self._original = torch.zeros(
            2, key_states.shape[1], 0, dtype=torch.long, device=key_states.device
        )

    def open(self, first_position: int, first_number: int) -> None:
        """Note the first position, and the first token's index, of the next forward."""
        self._next = first_position, first_number
        self._is_open = True

    def close(self, *, watched: bool) -> None:
        """Close the forward that is open.

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
        """Insert new tokens, and return the keys and values that they attend to.

        Args:
            key_states: new keys [1, H, Q, D], rotated by the model.
            value_states: new values [1, H, Q, D].
            args: what models pass besides, and no cache needs.
            kwargs: likewise.

        Returns:
            Keys, rotated to their slots, and values, each [1, H, N + Q, D], decoded.

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
        keys, values, original = self._held()
        num_new, device = key_states.shape[-2], original.device
        starts = torch.tensor(self._next, device=device)[:, None, None]
        new = starts + torch.arange(num_new, device=device).expand(2, original.shape[1], -1)
        new_keys, new_values = self.encode(key_states, value_states)
        self.stored_keys, self.stored_values = keys.append(new_keys), values.append(new_values)
        self._original = torch.cat([original, new], dim=-1)
        return self._keys_at(self._next[0] - keys.num_slots), self.stored_values.decode()

    def observe(self, weights: Tensor | None) -> None:
        """Record the attention of the new tokens [1, Hq, Q, N], if the score needs it."""
        if isinstance(self._policy, AttentionPolicy) and weights is not None:
            num_heads = self._held()[2].shape[1]
            _, num_queries, num_new, num_keys = weights.shape
            by_head = weights.detach().view(num_heads, num_queries // num_heads, num_new, num_keys)
            self.memory = self._policy.remember(self.memory, by_head)

    def evict(self, count: int) -> None:
        """Keep the best `count` tokens of each head."""
        num_held = self.num_stored()
        if count >= num_held:
            return
        keys, values, original = self._held()
        kept = best(
            self._scores(),
            count,
            sinks=self._policy.sinks,
            protected=self._policy.protected(num_held),
        )
        self.stored_keys = keys.map(lambda stored: _take(stored[0], kept)[None])
        self.stored_values = values.map(lambda stored: _take(stored[0], kept)[None])
        self._original = original.gather(-1, kept.expand(2, -1, -1))
        if self.memory is not None:
            rows = kept[:, None].expand(-1, self.memory.shape[1], -1)
            self.memory = self.memory.gather(-1, rows)
        self._tables = None

    def tokens(self) -> Tensor:
        """Return the tokens held [H, N], as indices into the sequence, in slot order."""
        return torch.zeros(0, 0, dtype=torch.long) if self._original is None else self._original[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that `query_length` new tokens will attend to."""
        num_cached = self._counts.settled()[self._depth]
        return num_cached + query_length, self._counts.num_seen - num_cached

    def get_seq_length(self) -> int:
        """Return the tokens ever seen, which is how transformers counts positions."""
        return self._counts.num_seen

    def _held(self) -> tuple[EncodedStates, EncodedStates, Tensor]:
        """Return keys and values [1, H, N, D], and positions and indices [2, H, N]."""
        if self.stored_keys is None or self.stored_values is None or self._original is None:
            raise UnsupportedOperationError(
                "the cache holds nothing yet; prefill at least one token first"
            )
        return self.stored_keys, self.stored_values, self._original

    def _scores(self) -> Tensor:
        """Return the score of each token held [H, N]."""
        if isinstance(self._policy, KeyPolicy):
            return self._policy.score(self._keys_at(0)[0], self._held()[1].decode()[0])
        assert isinstance(self._policy, AttentionPolicy)
        assert self.memory is not None
        return self._policy.score(self.memory)

    def _keys_at(self, origin: int) -> Tensor:
        """Return keys [1, H, N, D], decoded, with slot s rotated to the position `origin + s`."""
        stored, _, original = self._held()
        keys = stored.decode()
        if self._rotation is None:
            return keys
        if self._tables is None or self._tables[0] != origin:
            self._tables = origin, _tables_to(origin, original[0], self._rotation)
        tables = self._tables[1]
        # Heads side by side in one row: each token of each head has its own angle.
        _, num_heads, _, head_dim = keys.shape
        num_moved = tables[0].shape[1] // num_heads
        if num_moved == 0:
            return keys
        row = keys[:, :, :num_moved].reshape(1, 1, -1, head_dim)
        moved = self._rotation.rotate(row, tables).view(1, num_heads, -1, head_dim)
        return torch.cat([moved, keys[:, :, num_moved:]], dim=-2)


def _tables_to(origin: int, original: Tensor, rotation: Rotation) -> RotaryTables:
    """Return tables from positions [H, N] to slots, up to the last slot moved in any head."""
    slots = torch.arange(original.shape[-1], device=original.device)
    shifts = origin + slots - original
    moved = shifts.any(dim=0).nonzero()
    num_moved = int(moved[-1]) + 1 if len(moved) else 0
    return rotation.tables(shifts[:, :num_moved].flatten())


def _take(states: Tensor, slots: Tensor) -> Tensor:
    """Return states [H, N, W] at slots [H, K] of each head."""
    return states.gather(1, slots[..., None].expand(-1, -1, states.shape[-1]))

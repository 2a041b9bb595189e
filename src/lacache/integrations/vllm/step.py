"""A step, ready for every layer: its rounds as tensors, and the order of what they do."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import CommonAttentionMetadata

from lacache.integrations.vllm.arrays import ScheduleArrays
from lacache.integrations.vllm.pages import Pages, PageSlots, SlotMoves
from lacache.integrations.vllm.rotary import table_of_model, turn
from lacache.integrations.vllm.rounds import Round, cut_into_rounds


@final
@dataclass(frozen=True)
class ReadyRound:
    """`Round` as tensors. No `tokens` are all of the step's.

    Args:
        tokens: [tokens], or None.
        starts: [sequences + 1], int32.
        lengths: [sequences], int32.
        table: [sequences, pages], int32: their pages.
        positions: [tokens].
        slots: [tokens].
        moves: what is compacted first, if anything is.
        longest_query: most tokens of a sequence.
        longest: most slots of a sequence.
        plan: what the attention makes of a round beforehand, if anything.
    """

    tokens: Tensor | None
    starts: Tensor
    lengths: Tensor
    table: Tensor
    positions: Tensor
    slots: PageSlots
    moves: SlotMoves | None
    longest_query: int
    longest: int
    plan: Any


@final
@dataclass(frozen=True)
class ReadyStep:
    """A step, for every layer."""

    rounds: Sequence[ReadyRound]
    rows: Mapping[str, int]
    """For each layer of vLLM's, by name, the row of `SlotMoves` that is its own."""


def rows_of_layers(schedule: ScheduleArrays, layer_names: Iterable[str]) -> dict[str, int]:
    """For each layer, by vLLM's name, which has its number, the row of moves that is its own."""
    return {name: schedule.row_of_layer[extract_layer_index(name)] for name in layer_names}


def ready(
    schedule: ScheduleArrays,
    rows: Mapping[str, int],
    step: CommonAttentionMetadata,
    seq_lens: Tensor,
    page_size: int,
    plan: Callable[[Tensor, Tensor], Any],
) -> ReadyStep:
    """Cut a step into rounds.

    Args:
        schedule: of every sequence.
        rows: of `rows_of_layers`.
        step: as vLLM tells it.
        seq_lens: [sequences] on CPU, tokens of each with this step's.
        page_size: slots in a page.
        plan: what the attention makes of a round's starts and lengths.
    """
    # vLLM's rows have room for the longest request, of which a ladder uses the first pages.
    width = -(-schedule.capacity // page_size)
    table = step.block_table_tensor[: step.num_reqs, :width]
    starts = step.query_start_loc_cpu[: step.num_reqs + 1].numpy().astype(np.int64)
    num_seen = seq_lens[: step.num_reqs].numpy().astype(np.int64) - np.diff(starts)
    pages = table.cpu().numpy().astype(np.int64)
    rounds = cut_into_rounds(schedule, num_seen, starts, pages, page_size)
    return ReadyStep(
        [_ready(one, table, int(starts[-1]), page_size, plan) for one in rounds],
        rows,
    )


def _ready(
    one: Round,
    table: Tensor,
    num_tokens: int,
    page_size: int,
    plan: Callable[[Tensor, Tensor], Any],
) -> ReadyRound:
    device = table.device

    def put(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    starts, lengths = put(one.starts.astype(np.int32)), put(one.lengths.astype(np.int32))
    return ReadyRound(
        tokens=None if len(one.tokens) == num_tokens else put(one.tokens),
        starts=starts,
        lengths=lengths,
        table=table[put(one.sequences)],
        positions=put(one.positions),
        slots=PageSlots.of(one.slots, page_size, device),
        moves=None if one.moves is None else SlotMoves.of(one.moves, page_size, device),
        longest_query=int(np.diff(one.starts).max()),
        longest=int(one.lengths.max()),
        plan=plan(starts, lengths),
    )


def run(
    step: ReadyStep,
    layer_name: str,
    pages: Pages,
    attend: Callable[[ReadyRound, Tensor, Tensor], None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
) -> None:
    """Compact, write and attend, round by round.

    Args:
        step: for every layer.
        layer_name: vLLM's.
        pages: of the layer.
        attend: of turned queries to what their sequences hold, written to its last argument.
        query: [tokens, heads, head size], not turned.
        key: [tokens, KV heads, head size], not turned.
        value: [tokens, KV heads, head size].
        output: as `query`, written to.
    """
    row = step.rows[layer_name]
    for one in step.rounds:
        if one.moves is not None:
            pages.move(one.moves, row)
        num_tokens = one.positions.shape[0]
        # Beyond the step's tokens vLLM pads at times.
        chosen = slice(num_tokens) if one.tokens is None else one.tokens
        pages.write(one.slots, one.positions, key[chosen], value[chosen])
        turned = query[chosen].clone(memory_format=torch.contiguous_format)
        turn(table_of_model(), turned, one.positions)
        if one.tokens is None:
            attend(one, turned, output[:num_tokens])
        else:
            found = torch.empty_like(output[:num_tokens])
            attend(one, turned, found)
            output[one.tokens] = found

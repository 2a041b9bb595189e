"""Which tokens of a text depend on what is far back, told by the text alone."""

from collections.abc import Sequence


def last_seen(token_ids: Sequence[int]) -> list[int]:
    """How far back, in tokens, the same token came after the same token last.

    A model that still sees that place can go on as it went on there, so a token whose distance is
    beyond what a cache holds of the newest is one that a longer memory can help with. No policy
    and no loss has a say in it.

    Args:
        token_ids: a text [N].

    Returns:
        For each token but the first [N - 1], the distance; 0 where the two come for the first time.
    """
    places: dict[tuple[int, int], int] = {}
    distances = []
    for place in range(1, len(token_ids)):
        pair = token_ids[place - 1], token_ids[place]
        distances.append(place - places[pair] if pair in places else 0)
        places[pair] = place
    return distances

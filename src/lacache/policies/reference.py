"""The schedule, written as slowly and plainly as the definition: the twin that tests trust.

It shares no code with the fast path, geometry included.
"""

from lacache.policies.schedule import State


def reference_kept(
    num_seen: int,
    *,
    settled: bool,
    num_layers: int,
    capacity: int,
    span: int,
    overlap: int,
    sinks: int,
    recent: int,
    evict_batch: int,
    geometry: str = "interleaved",
    unit: int = 1,
    window_layers: tuple[int, ...] = (),
) -> tuple[State, list[list[int]]]:
    """Return state and, per layer, the original numbers of the tokens kept after `num_seen`.

    Token by token and layer by layer, as in the canonical schedule. `settled` runs the
    compaction that is due after the last token, if one is, as the released code does. The other
    arguments are a ladder's, all of them in layers, slots or tokens.
    """
    step = span - overlap
    band = 1
    while (band - 1) * step < num_layers - span:
        band += 1
    kept_units = 1
    while kept_units * step < span:
        kept_units += 1
    kept_units = min(kept_units, band)
    freed_units = band - kept_units

    def phase(layer: int) -> int:
        if geometry == "interleaved":
            return layer % (freed_units + 1)
        moved = 0
        while moved < freed_units and moved * step < layer - span + 1:
            moved += 1
        return moved

    layers: list[list[int]] = [[] for _ in range(num_layers)]
    cursor = sinks

    def compact() -> None:
        nonlocal cursor
        num_cached = len(layers[0])
        limit = num_cached - recent
        thinned = 0
        while (
            thinned * freed_units * unit < evict_batch
            and sinks + (thinned + 1) * band * unit <= limit
        ):
            thinned += 1
        if cursor + thinned * band * unit > limit:
            cursor = sinks
        gone = thinned * freed_units * unit
        for layer, tokens in enumerate(layers):
            if layer in window_layers:
                slots = [*range(sinks), *range(sinks + gone, num_cached)]
            else:
                slots = list(range(cursor))
                for j in range(thinned):
                    for a in range(kept_units):
                        for u in range(unit):
                            slots.append(cursor + (j * band + phase(layer) + a) * unit + u)
                slots += range(cursor + thinned * band * unit, num_cached)
            layers[layer] = [tokens[slot] for slot in slots]
        cursor += thinned * kept_units * unit

    for token in range(num_seen):
        if len(layers[0]) == capacity:
            compact()
        for tokens in layers:
            tokens.append(token)
    if settled and len(layers[0]) == capacity:
        compact()
    return State(num_seen, len(layers[0]), cursor), layers

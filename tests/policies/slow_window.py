"""The slow, obvious twin of a window that shrinks: one token at a time."""

from lacache.policies import ShrinkingWindow


def may_hold(window: ShrinkingWindow, capacity: int, num_seen: int) -> int:
    """Tokens in a window when everything seen is in the history, counted slot by slot."""
    heads = window.growing_heads + window.window_heads
    free = capacity * heads - window.growing_heads * num_seen
    held = 0
    while free >= window.window_heads and held < capacity:
        free -= window.window_heads
        held += 1
    return max(held, window.least)


def shrunk(
    window: ShrinkingWindow, capacity: int, tokens: list[int], token: int, batch: int
) -> list[int]:
    """What is left of `tokens` before token number `token` comes in."""
    if len(tokens) + 1 <= may_hold(window, capacity, token + 1):
        return tokens
    tokens = list(tokens)
    while len(tokens) + batch > may_hold(window, capacity, token + batch):
        del tokens[window.sinks]
    return tokens

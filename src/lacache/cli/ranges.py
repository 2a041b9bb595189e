"""Many numbers in a few words."""

from collections.abc import Sequence

_SHOWN_FIRST = 6
_SHOWN_LAST = 4


def describe(numbers: Sequence[int]) -> str:
    """Increasing numbers as runs of a constant step: `0-3, 4-84 by 2, 86-100`.

    Of many runs only the first and the last are written.
    """
    runs: list[str] = []
    start = 0
    while start < len(numbers):
        stop = _end_of_run(numbers, start)
        if stop - start < 3 and numbers[stop - 1] - numbers[start] > 1:
            stop = start + 1  # two numbers apart are no run
        first, last = numbers[start], numbers[stop - 1]
        step = numbers[start + 1] - first if stop - start > 1 else 1
        text = f"{first}" if stop - start == 1 else f"{first}-{last}"
        runs.append(text if step == 1 else f"{text} by {step}")
        start = stop
    hidden = len(runs) - _SHOWN_FIRST - _SHOWN_LAST
    if hidden > 1:
        runs[_SHOWN_FIRST:-_SHOWN_LAST] = [f"... {hidden} more runs ..."]
    return ", ".join(runs)


def _end_of_run(numbers: Sequence[int], start: int) -> int:
    """After the last number that goes on with the step of the first two."""
    stop = min(start + 2, len(numbers))
    while stop < len(numbers) and (
        numbers[stop] - numbers[stop - 1] == numbers[start + 1] - numbers[start]
    ):
        stop += 1
    return stop

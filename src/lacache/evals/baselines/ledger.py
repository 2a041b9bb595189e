"""The counts of a scored cache, brought forward as tokens come in."""

from typing import final

from lacache.evals.baselines.counts import Counts


@final
class Ledger:
    """How many tokens were seen and how many each layer holds. Mutable; shared by the layers."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.clear()

    def clear(self) -> None:
        """Nothing seen."""
        self.held = self.counts.start()
        self.num_seen = 0
        self.compactions = 0

    def settled(self) -> tuple[int, ...]:
        """What each layer holds as the next token finds it."""
        return self.counts.settle(self.held)

    def room(self) -> int:
        """How many tokens the next forward can bring without a compaction inside it."""
        return self.counts.room(self.settled())

    def settle(self) -> None:
        """Count the compaction that is due, if one is."""
        settled = self.settled()
        self.compactions += settled != self.held
        self.held = settled

    def insert(self, num_new: int) -> None:
        """Count new tokens that fit."""
        self.num_seen += num_new
        self.held = tuple(n + num_new for n in self.held)

    def insert_dense(self, num_new: int) -> None:
        """Count a first input that was read whole and cut down to what segments would leave."""
        self.num_seen = num_new
        self.held = self.counts.after(num_new)

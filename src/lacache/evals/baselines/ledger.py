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
        self.dense_tokens = 0
        """Length of a first input that is read with a full cache; 0 for none."""

    @property
    def is_dense(self) -> bool:
        """Whether the next token belongs to an input that is read with a full cache."""
        return self.num_seen < self.dense_tokens

    def settled(self) -> tuple[int, ...]:
        """What each layer holds as the next token finds it."""
        return self.held if self.is_dense else self.counts.settle(self.held)

    def room(self) -> int:
        """How many tokens the next forward can bring without a compaction inside it."""
        if self.is_dense:
            return self.dense_tokens - self.num_seen
        return self.counts.room(self.settled())

    def settle(self) -> None:
        """Count the compaction that is due, if one is."""
        settled = self.settled()
        self.compactions += settled != self.held
        self.held = settled

    def insert(self, num_new: int) -> None:
        """Count new tokens that fit; a dense input that ends is cut to what pieces would leave."""
        was_dense = self.is_dense
        self.num_seen += num_new
        self.held = tuple(n + num_new for n in self.held)
        if was_dense and not self.is_dense:
            read, self.held = self.held, self.counts.after(self.num_seen)
            self.compactions += read != self.held

"""The block where layers do least."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.split import Split
from ouroboros_plugins.splitters.measuring import in_place_of, run_length, statistics_of


@dataclass(frozen=True)
class BlockInfluence:
    """The n consecutive layers of least influence give way to the most influential of them, looped.

    BI_i = 1 - mean cosine of the states before and behind layer i (ShortGPT, Men 2024), summed over a run of layers.
    The formula is second-hand. Men 2024 removes the layers of least influence wherever they are; that they are
    consecutive, and that a block of them stays and is looped, is this splitter's own.
    """

    keep: int | None
    size: int

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: so many layers cannot be kept.
        """
        influence = (1 - statistics_of(facts).cosine.diagonal(1)).tolist()
        length = run_length(facts.layers, self.keep, self.size)
        first = min(range(facts.layers - length + 1), key=lambda i: sum(influence[i : i + length]))
        places = range(first, first + length - self.size + 1)
        block = max(places, key=lambda i: sum(influence[i : i + self.size]))
        return in_place_of(facts.layers, first, length, block, self.size)

"""The block where the state turns least."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.split import Split
from ouroboros_plugins.splitters.measuring import in_place_of, run_length, statistics_of


@dataclass(frozen=True)
class AngularDistance:
    """The n consecutive layers from l* on give way to their middle ones, looped (distance of Gromov 2024).

    l* = argmin over l of d(x_l, x_{l+n}), with d = arccos(cosine) / pi between the states before layers l and l + n.
    The formula is cited from memory. Gromov 2024 removes these layers altogether; that a block of them stays and is
    looped is this splitter's own.
    """

    keep: int | None
    size: int

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: so many layers cannot be kept.
        """
        angle = statistics_of(facts).angle
        length = run_length(facts.layers, self.keep, self.size)
        first = min(range(facts.layers - length + 1), key=lambda i: float(angle[i, i + length]))
        middle = first + (length - self.size + 1) // 2
        return in_place_of(facts.layers, first, length, middle, self.size)

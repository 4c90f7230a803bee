"""Layers shared in a cycle: ABCABC."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.split import Split
from ouroboros_plugins.splitters.sharing import Start, cycled, one_loop, shared


@dataclass(frozen=True)
class Cycle:
    """K shared layers, looped L/K times as one block: at turn t, layer k stands for layer t K + k (Bae 2024)."""

    layers: int | None
    start: Start

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: too many shared layers for the model.
        """
        groups = cycled(range(facts.layers), self.layers)
        return shared(facts.layers, (one_loop(groups, self.start),), groups, self.start)

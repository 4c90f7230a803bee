"""Layers shared in sequence: AABBCC."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.split import Split
from ouroboros_plugins.splitters.sharing import Start, in_runs, loop_each, shared


@dataclass(frozen=True)
class InSequence:
    """K loops of one layer each, L/K turns: at turn t, layer k stands for layer k L/K + t (Bae 2024)."""

    layers: int | None
    start: Start

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: too many shared layers for the model.
        """
        groups = in_runs(range(facts.layers), self.layers)
        return shared(facts.layers, loop_each(groups, self.start), groups, self.start)

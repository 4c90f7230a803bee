"""Layers shared in a cycle, between two that are not: ABCBCD."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.split import Segment, Split
from ouroboros_plugins.splitters.sharing import Start, cycled, one_loop, shared


@dataclass(frozen=True)
class MiddleCycle:
    """The first and the last layer run once; K shared ones cycle through the L - 2 between them (Bae 2024)."""

    layers: int | None
    start: Start

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: too many shared layers for the model.
        """
        last = facts.layers - 1
        groups = cycled(range(1, last), self.layers)
        segments = Segment((0,)), one_loop(groups, self.start), Segment((last,))
        return shared(facts.layers, segments, groups, self.start)

"""The whole model as one block."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.split import Segment, Split


@dataclass(frozen=True)
class Whole:
    """Loop every layer: x <- layers(x), turn by turn. Nothing is removed, and no turn stands for a layer of its own.

    Universal Transformer (Dehghani 2018) does so with a base of one layer, Ouro (2025) with all of a deep one.
    """

    def __call__(self, facts: ModelFacts) -> Split:
        """The split."""
        return Split(facts.layers, (Segment(tuple(range(facts.layers)), looped=True),), residual_layers=())

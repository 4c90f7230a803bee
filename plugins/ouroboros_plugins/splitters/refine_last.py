"""The intact model with its last layers looped."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_core.split import Segment, Split


class RefineLastOptions(Options):
    """How much of the end is looped."""

    size: int = Field(1, ge=1, description="last layers that are looped")


@dataclass(frozen=True)
class RefineLast:
    """Remove nothing; loop the last `size` layers. The bases hold how all other layers differ from them."""

    size: int

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: the model has no more layers than are to be looped.
        """
        if self.size >= facts.layers:
            raise UserError(f"splitter.size={self.size}: the model has {facts.layers} layers; loop fewer")
        first, last = (
            tuple(range(facts.layers - self.size)),
            tuple(range(facts.layers - self.size, facts.layers)),
        )
        return Split(facts.layers, (Segment(first), Segment(last, looped=True)), residual_layers=first)

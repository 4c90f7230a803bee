"""A base that was made with the layers of the split."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_core.split import Segment, Split


class FromConfigOptions(Options):
    """How the base's layers are shared out. Together they are all of them."""

    prelude: int = Field(2, ge=0, description="first layers, which run once")
    size: int = Field(4, ge=1, description="layers of the recurrent block")
    coda: int = Field(2, ge=0, description="last layers, which run once")


@dataclass(frozen=True)
class FromConfig:
    """Prelude, block and coda are the whole base: nothing is removed. Huginn (Geiping 2025) has 2 / 4 / 2 layers."""

    prelude: int
    size: int
    coda: int

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: the base has more layers, or fewer.
        """
        total = self.prelude + self.size + self.coda
        if total != facts.layers:
            raise UserError(
                f"splitter: prelude={self.prelude}, size={self.size} and coda={self.coda} make {total} layers, and the "
                f"base has {facts.layers}: make one with --set base.config.num_hidden_layers={total}, or change the "
                "three"
            )
        layers, coda = tuple(range(total)), self.prelude + self.size
        block = Segment(layers[self.prelude : coda], looped=True)
        return Split(total, (Segment(layers[: self.prelude]), block, Segment(layers[coda:])), residual_layers=())

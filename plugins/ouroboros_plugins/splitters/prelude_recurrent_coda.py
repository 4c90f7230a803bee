"""Prelude, recurrent block, coda."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from ouroboros_core.contracts import ModelFacts
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_core.split import Segment, Split


class PreludeRecurrentCodaOptions(Options):
    """Which layers stay. The defaults keep the paper's proportions: 8 / 18 / 8 of 36 layers, 7 / 15 / 7 of 30."""

    prelude: int | None = Field(None, ge=0, description="first layers kept; None: two ninths of all")
    block: int | None = Field(None, ge=0, description="first looped layer; None: so that the block is in the middle")
    coda: int | None = Field(None, ge=0, description="last layers kept; None: two ninths of all")
    size: int = Field(1, ge=1, description="layers of the recurrent block")


@dataclass(frozen=True)
class PreludeRecurrentCoda:
    """Cut L layers into `prelude` first ones, a looped block of `size`, and `coda` last ones."""

    prelude: int | None
    block: int | None
    coda: int | None
    size: int

    def __call__(self, facts: ModelFacts) -> Split:
        """The split.

        Raises:
            UserError: the three do not fit into the model, or overlap.
        """
        share = round(2 * facts.layers / 9)
        prelude = share if self.prelude is None else self.prelude
        coda = share if self.coda is None else self.coda
        block = (facts.layers - self.size + 1) // 2 if self.block is None else self.block
        first_of_coda = facts.layers - coda
        if not prelude <= block <= block + self.size <= first_of_coda:
            raise UserError(
                f"splitter: prelude={prelude}, block={block}, size={self.size} and coda={coda} do not fit into "
                f"{facts.layers} layers without overlap: make one of them smaller"
            )
        kept = Segment(tuple(range(prelude))), Segment(tuple(range(block, block + self.size)), looped=True)
        segments = (*kept, Segment(tuple(range(first_of_coda, facts.layers))))
        named = {i for segment in segments for i in segment.layers}
        return Split(facts.layers, segments, tuple(i for i in range(facts.layers) if i not in named))

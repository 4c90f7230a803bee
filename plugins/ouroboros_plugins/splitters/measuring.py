"""A run of consecutive layers gives way to a block: what the splitters that measure have in common."""

from __future__ import annotations

from pydantic import Field

from ouroboros_core.contracts import LayerStatistics, ModelFacts
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_core.split import Segment, Split


class MeasuringOptions(Options):
    """How much stays. Where the block goes is measured."""

    keep: int | None = Field(
        None, ge=1, description="layers kept in all, with the block; None: the block and two ninths of all at each end"
    )
    size: int = Field(1, ge=1, description="layers of the recurrent block")


def statistics_of(facts: ModelFacts) -> LayerStatistics:
    """What was measured of the model."""
    assert facts.statistics is not None, "whoever builds a splitter that measures provides them"
    return facts.statistics


def run_length(layers: int, keep: int | None, size: int) -> int:
    """The number of consecutive layers whose place the block takes, its own among them.

    Raises:
        UserError: there is no such run.
    """
    keep = 2 * round(2 * layers / 9) + size if keep is None else keep
    if not size <= keep <= layers:
        raise UserError(
            f"splitter: keep={keep} with a block of size={size} does not fit into {layers} layers: keep at least the "
            "block, and at most all"
        )
    return layers - keep + size


def in_place_of(layers: int, first: int, length: int, block: int, size: int) -> Split:
    """The split in which `size` layers from `block` on take the place of `length` layers from `first` on."""
    before, after = tuple(range(first)), tuple(range(first + length, layers))
    looped = Segment(tuple(range(block, block + size)), looped=True)
    removed = tuple(i for i in range(first, first + length) if i not in looped.layers)
    return Split(layers, (Segment(before), looped, Segment(after)), removed)

"""Split: which layers of the intact model are kept, in which order they run, and which are looped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise, takewhile
from typing import Any

from ouroboros_core.errors import UserError

MANY = 5  # layers at equal distances: as many are not named one by one


@dataclass(frozen=True)
class Segment:
    """Layers that run in order: once, or once each turn. Layers are numbered as in the intact model.

    `stands_for[turn][place]` is the layer of the intact model that a looped layer stands for at a turn, where the
    turns share out the model's depth; later turns stand for the same as the last one. Empty: for none in particular.
    """

    layers: tuple[int, ...]
    looped: bool = False
    stands_for: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Split:
    """An ordered list of segments. What no segment names is removed.

    `residual_layers` are the layers whose difference from the looped ones the SVD bases hold: as a rule the removed
    ones. `averaged` tells which layers a kept one starts as the mean of; one that is not named starts as itself.
    """

    total: int  # layers of the intact model
    segments: tuple[Segment, ...]
    residual_layers: tuple[int, ...]
    averaged: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a split that the model cannot be cut into.

        Raises:
            UserError: a layer that is not there, no looped segment, or an empty one.
        """
        if beyond := [i for i in self.kept if not 0 <= i < self.total]:
            raise UserError(f"split: layer {beyond[0]} of a model whose layers are 0 to {self.total - 1}")
        if not self.looped:
            raise UserError("split: no layer is looped; a recursive model needs a recurrent block")
        if any(segment.looped and not segment.layers for segment in self.segments):
            raise UserError("split: the recurrent block is empty")

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Split:
        """From what `dataclasses.asdict` makes of one, also by way of JSON."""
        segments = tuple(
            Segment(tuple(one["layers"]), one["looped"], tuple(tuple(turn) for turn in one["stands_for"]))
            for one in told["segments"]
        )
        averaged = {int(layer): tuple(several) for layer, several in told["averaged"].items()}
        return cls(told["total"], segments, tuple(told["residual_layers"]), averaged)

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that remain, ascending."""
        return tuple(sorted({i for segment in self.segments for i in segment.layers}))

    @property
    def looped(self) -> tuple[int, ...]:
        """The layers of the recurrent blocks, ascending."""
        return tuple(sorted({i for segment in self.segments if segment.looped for i in segment.layers}))

    @property
    def order(self) -> tuple[int, ...]:
        """The kept layers in the order they run, one turn each."""
        return tuple(i for segment in self.segments for i in segment.layers)

    @property
    def coda(self) -> tuple[int, ...]:
        """The layers that run after the last loop."""
        after = max(place for place, segment in enumerate(self.segments) if segment.looped)
        return tuple(i for segment in self.segments[after + 1 :] for i in segment.layers)

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers of the intact model that are gone."""
        return tuple(sorted(set(range(self.total)) - set(self.kept)))

    def drawn(self, turns: int) -> str:
        """One line for people: `0-6 | 15 x 4 | 23-29   (removed: 7-14, 16-22)`.

        Loops of one layer that follow each other are drawn as one: `0, 2, ... 28 each x 2`.
        """
        shown = []
        for alone, group in groupby(self.segments, lambda segment: segment.looped and len(segment.layers) == 1):
            segments = [segment for segment in group if segment.layers]
            if alone and len(segments) > 1:
                shown.append(self._drawn(tuple(segment.layers[0] for segment in segments), f" each x {turns}"))
            else:
                shown += [self._drawn(each.layers, f" x {turns}" if each.looped else "") for each in segments]
        return " | ".join(shown) + (f"   (removed: {ranges(self.removed)})" if self.removed else "")

    def _drawn(self, layers: tuple[int, ...], repeated: str) -> str:
        counts = sorted({len(self.averaged.get(i, (i,))) for i in layers})
        each = "each " if len(layers) > 1 else ""
        mean = f" ({each}the mean of {' or '.join(map(str, counts))})" if counts != [1] else ""
        return ranges(layers) + repeated + mean


def ranges(numbers: tuple[int, ...]) -> str:
    """`(0, 1, 2, 5)` as `0-2, 5`, and many at equal distances, `(0, 2, 4, 6, 8)`, as `0, 2, ... 8`."""
    shown = []
    while numbers:
        run = _evenly_spaced(numbers)
        step = run[1] - run[0] if len(run) > 1 else 0
        if step == 1:
            shown.append(f"{run[0]}-{run[-1]}")
        elif len(run) >= MANY:
            shown.append(f"{run[0]}, {run[1]}, ... {run[-1]}")
        else:
            run = run[:1]  # the next may begin a range
            shown.append(str(run[0]))
        numbers = numbers[len(run) :]
    return ", ".join(shown)


def _evenly_spaced(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The longest beginning whose numbers have equal distances."""
    steps = [b - a for a, b in pairwise(numbers)]
    same = takewhile(lambda step: step == steps[0], steps)
    return numbers[: 1 + len(list(same))]

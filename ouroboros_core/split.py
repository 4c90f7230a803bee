"""Split: which layers of the intact model are kept, in which order they run, and which are looped."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros_core.errors import UserError


@dataclass(frozen=True)
class Segment:
    """Layers that run in order: once, or once each turn. Layers are numbered as in the intact model."""

    layers: tuple[int, ...]
    looped: bool = False


@dataclass(frozen=True)
class Split:
    """An ordered list of segments. What no segment names is removed.

    `residual_layers` are the layers whose difference from the looped ones the SVD bases hold: as a rule the
    removed ones.
    """

    total: int  # layers of the intact model
    segments: tuple[Segment, ...]
    residual_layers: tuple[int, ...]

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

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that remain, ascending."""
        return tuple(sorted({i for segment in self.segments for i in segment.layers}))

    @property
    def looped(self) -> tuple[int, ...]:
        """The layers of the recurrent blocks, ascending."""
        return tuple(sorted({i for segment in self.segments if segment.looped for i in segment.layers}))

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
        """One line for people: `0-6 | 15 x 4 | 23-29   (removed: 7-14, 16-22)`."""
        shown = [
            f"{ranges(segment.layers)} x {turns}" if segment.looped else ranges(segment.layers)
            for segment in self.segments
            if segment.layers
        ]
        return " | ".join(shown) + (f"   (removed: {ranges(self.removed)})" if self.removed else "")


def ranges(numbers: tuple[int, ...]) -> str:
    """`(0, 1, 2, 5)` as `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

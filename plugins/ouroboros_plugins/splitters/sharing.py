"""Layers shared over the depth: what three splitters have in common.

Relaxed Recursive Transformers (Bae 2024): K layers take the places of L. Where K does not divide L, layers are dropped
at equal distances first, so that K * (L // K) of them are left. Shared layers start as in the authors' code: as the
mean of the layers they stand for, or as layers of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_core.split import Segment, Split

Start = Literal["average", "stepwise", "first", "last"]
Group = tuple[int, ...]  # the layers that one shared layer stands for, turn by turn


class SharingOptions(Options):
    """How many layers are left, and what they start as."""

    layers: int | None = Field(
        None,
        ge=1,
        description="shared layers, K; None: half of those they stand for. Where K does not divide these, some are "
        "dropped at equal distances",
    )
    start: Start = Field(
        "average",
        description="a shared layer starts as the mean of the layers it stands for; or the K are layers of the model: "
        "at equal distances (stepwise), the first ones, or the last ones",
    )


def cycled(layers: Sequence[int], count: int | None) -> list[Group]:
    """ABCABC: shared layer k stands for layers k, k + K, k + 2 K, ... of the depth."""
    depth, count = _shared_out(layers, count)
    return [depth[place::count] for place in range(count)]


def in_runs(layers: Sequence[int], count: int | None) -> list[Group]:
    """AABBCC: shared layer k stands for a run of L/K layers of the depth."""
    depth, count = _shared_out(layers, count)
    turns = len(depth) // count
    return [depth[place * turns : (place + 1) * turns] for place in range(count)]


def one_loop(groups: Sequence[Group], start: Start) -> Segment:
    """The shared layers as one block."""
    return Segment(_starts(groups, start), looped=True, stands_for=tuple(zip(*groups, strict=True)))


def loop_each(groups: Sequence[Group], start: Start) -> tuple[Segment, ...]:
    """Each shared layer as a block of its own."""
    return tuple(
        Segment((layer,), looped=True, stands_for=tuple((stood_for,) for stood_for in group))
        for layer, group in zip(_starts(groups, start), groups, strict=True)
    )


def shared(total: int, segments: tuple[Segment, ...], groups: Sequence[Group], start: Start) -> Split:
    """The split into these segments. What none of them names is removed."""
    kept = {layer for segment in segments for layer in segment.layers}
    averaged = {group[0]: group for group in groups} if start == "average" else {}
    return Split(total, segments, tuple(i for i in range(total) if i not in kept), averaged)


def _shared_out(layers: Sequence[int], count: int | None) -> tuple[Group, int]:
    """The layers that `count` shared ones stand for together, and `count`.

    Raises:
        UserError: some shared layer would stand for one layer only.
    """
    most = len(layers) // 2
    count = most if count is None else count
    if not 1 <= count <= most:
        raise UserError(
            f"splitter.layers={count}: each shared layer must stand for two or more of the {len(layers)} layers that "
            f"are shared: choose at most {most}, or splitter whole to loop the model as it is"
        )
    return _evenly(layers, count * (len(layers) // count)), count


def _evenly(layers: Sequence[int], count: int) -> Group:
    """So many of the layers at equal distances, the first and the last among them."""
    return tuple(layers[round(i * (len(layers) - 1) / max(count - 1, 1))] for i in range(count))


def _starts(groups: Sequence[Group], start: Start) -> Group:
    """The layers of the model that the shared ones are kept as. A mean is kept as the first of its layers."""
    depth, count = sorted(layer for group in groups for layer in group), len(groups)
    chosen: Mapping[Start, Callable[[], Sequence[int]]] = {
        "average": lambda: [group[0] for group in groups],
        "stepwise": lambda: _evenly(depth, count),
        "first": lambda: depth[:count],
        "last": lambda: depth[-count:],
    }
    return tuple(chosen[start]())

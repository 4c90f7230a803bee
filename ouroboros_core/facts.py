"""What is known before parts are built: of the model, of its layers, and of one recurrent block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

BRANCHES = ("attention", "ffn")  # the residual branches of a layer
Place = Literal["in", "out", "sum"]  # of a branch: its normed input, its output, and the residual stream behind it
SITES = [f"{branch}-{place}" for branch in BRANCHES for place in ("in", "out", "sum")]  # of a layer


@dataclass(frozen=True)
class LayerStatistics:
    """What the intact model does to a calibration text: how far its hidden states turn from layer to layer.

    Row and column a are of the states before layer a, the last ones of the states behind the last layer.
    """

    cosine: Tensor  # (L + 1, L + 1) mean cosine between the states
    angle: Tensor  # (L + 1, L + 1) mean angle between them, as a share of half a turn: arccos(cosine) / pi
    tokens: int  # of the text


@dataclass(frozen=True)
class ModelFacts:
    """What is known before the loop is drawn."""

    layers: int  # of the intact model
    width: int  # D
    turns: int  # `loop.turns`: turns at evaluation and decoding
    statistics: LayerStatistics | None = None  # measured where the splitter's part says `measures`


@dataclass(frozen=True)
class TapFacts:
    """One named linear of the recurrent block."""

    inputs: int
    outputs: int


Factors = tuple["Tensor", "Tensor"]  # A (R, in) and B (out, R): B A is a change of a weight (out, in)


class Bases(Protocol):
    """Gives, for a rank R, frozen factors of every tap: the mean residual of the layers that the block replaces."""

    def __call__(self, rank: int) -> Mapping[str, Factors]: ...


class Residuals(Protocol):
    """Gives, for a rank R, factors of every tap and turn: the residual of the layer that the turn stands for."""

    def __call__(self, rank: int) -> Mapping[str, Sequence[Factors]]: ...


@dataclass(frozen=True)
class LoopFacts:
    """What the model fixes about one recurrent block; a part's options hold what the user chooses."""

    width: int  # D
    turns: int  # turns at evaluation
    trained_turns: int  # the most turns a training step takes; later turns reuse the last trained row
    taps: Mapping[str, TapFacts]  # keyed "<layer of the block>.<linear>", for example "0.q"
    bases: Bases
    residuals: Residuals
    layers: int = 1  # of the block

    def sites(self, *places: Place) -> list[str]:
        """The names of these places in every residual branch of the block, for example "0.ffn-in"."""
        return [f"{layer}.{branch}-{place}" for layer in range(self.layers) for branch in BRANCHES for place in places]

"""Depth that grows in training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from ouroboros_core.contracts import Depth
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_plugins.schedules.log_normal_poisson import WIDEST, drawn

Shape = Literal["one-minus-sqrt", "linear"]
SHAPES: Mapping[Shape, Callable[[float], float]] = {
    "one-minus-sqrt": lambda x: 1 - math.sqrt(1 - x),
    "linear": lambda x: x,
}


class RampOptions(Options):
    """Depth grows from one turn to its full number, then stays (McLeish 2025)."""

    turns: int | None = Field(None, ge=1, description="turns, or their mean, when grown; None: `loop.turns`")
    over: float = Field(0.75, gt=0, le=1, description="the share of training that growing takes")
    shape: Shape = Field("one-minus-sqrt", description="slow at first, 1 - sqrt(1 - x), or even")
    sigma: float | None = Field(
        None,
        ge=0,
        le=WIDEST,
        description=f"draw around the present depth, as log-normal-poisson does, {WIDEST} at most; "
        "None: take it exactly",
    )
    most: int | None = Field(
        None, ge=1, description="deeper turns are cut to this; None: `turns`, or four times that where they are drawn"
    )
    with_gradient: int = Field(8, ge=1, description="the last so many turns carry gradient")


@dataclass(frozen=True)
class Ramp:
    """m = max(1, ceil(turns * shape(x))) turns, x = min(1, progress / over); or drawn around m, at most `most`.

    The source calls its shape "1 - sqrt"; that 1 - sqrt(1 - x), slow at first, is meant is our reading.
    """

    turns: int
    over: float
    shape: Shape
    sigma: float | None
    most: int
    with_gradient: int

    def __post_init__(self) -> None:
        """Refuse a cut that nothing ever reaches.

        Raises:
            UserError: the depth is not drawn, and is never as deep.
        """
        if self.sigma is None and self.most > self.turns:
            raise UserError(
                f"schedule.most={self.most}: without schedule.sigma the ramp takes {self.turns} turn(s) at most"
            )

    def __call__(self, step: int, progress: float, seed: int) -> Depth:
        """How deep this step is."""
        mean = max(1, math.ceil(self.turns * SHAPES[self.shape](min(1.0, progress / self.over))))
        turns = min(mean if self.sigma is None else drawn(mean, self.sigma, step, seed), self.most)
        return Depth(turns, min(self.with_gradient, turns))

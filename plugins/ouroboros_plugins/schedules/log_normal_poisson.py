"""Depth from a log-normal mixture of Poisson distributions."""

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ouroboros_core.contracts import Depth
from ouroboros_core.options import Options

WIDEST = 5  # sigma: far beyond it the drawn mean overflows the integers that numpy draws


class LogNormalPoissonOptions(Options):
    """A number of turns drawn for each step: mostly near a mean, now and then many more (Geiping 2025)."""

    mean: int | None = Field(None, ge=1, description="r-bar: one more turn is drawn on average; None: `loop.turns`")
    sigma: float = Field(
        0.5, ge=0, le=WIDEST, description=f"spread of the logarithm of the drawn mean; {WIDEST} at most"
    )
    most: int | None = Field(None, ge=1, description="deeper draws are cut to this; None: four times the mean")
    with_gradient: int = Field(8, ge=1, description="the last so many turns carry gradient")


@dataclass(frozen=True)
class LogNormalPoisson:
    """tau ~ N(log mean - sigma^2 / 2, sigma), r ~ Poisson(e^tau) + 1 turns, at most `most`.

    As published: e^tau has the mean r-bar itself, so that r has the mean r-bar + 1 before it is cut.
    """

    mean: int
    sigma: float
    most: int
    with_gradient: int

    def __call__(self, step: int, progress: float, seed: int) -> Depth:
        """Draw."""
        turns = min(drawn(self.mean, self.sigma, step, seed), self.most)
        return Depth(turns, min(self.with_gradient, turns))


def drawn(mean: int, sigma: float, step: int, seed: int) -> int:
    """r, a function of its arguments alone: every process draws the same."""
    generator = np.random.default_rng((seed, step))
    tau = generator.normal(math.log(mean) - sigma**2 / 2, sigma)
    return int(generator.poisson(math.exp(tau))) + 1

"""Depth drawn from a short list."""

import random
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ouroboros_core.contracts import Depth
from ouroboros_core.options import Options

Turns = Annotated[int, Field(ge=1)]


class ChoiceOptions(Options):
    """A number of turns drawn for each step."""

    turns: list[Turns] = Field([4, 8, 16], min_length=1, description="the numbers of turns drawn from, each as likely")
    with_gradient: int | None = Field(None, ge=1, description="the last so many turns carry gradient; None: all")


@dataclass(frozen=True)
class Choice:
    """One of `turns`, a function of the seed and the step alone: every process draws the same."""

    turns: tuple[int, ...]
    with_gradient: int | None = None

    @property
    def most(self) -> int:
        """The largest of them."""
        return max(self.turns)

    def __call__(self, step: int, progress: float, seed: int) -> Depth:
        """Draw."""
        turns = random.Random(f"{seed}/{step}").choice(self.turns)
        return Depth(turns, min(self.with_gradient or turns, turns))

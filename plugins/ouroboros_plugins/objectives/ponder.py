"""The price of thinking."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ouroboros_core.options import Options
from ouroboros_core.trace import Trace


class PonderOptions(Options):
    """Ponder cost of an adaptive halter."""

    weight: float = Field(0.01, gt=0, description="tau: the price of a turn, in nats a token")


@dataclass(frozen=True)
class Ponder:
    """tau (N + R): turns taken and the last state's weight. N is piecewise constant: the gradient flows through R."""

    wants_teacher: ClassVar[bool] = False
    wants_turns: ClassVar[bool] = False
    weight: float = 0.01

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor:
        """labels (B, T), not looked at -> (B, T)."""
        return self.weight * (trace.taken + trace.remainder)

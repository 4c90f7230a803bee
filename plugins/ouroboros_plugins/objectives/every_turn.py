"""Every turn is taught."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ouroboros_core.options import Options
from ouroboros_core.trace import Trace

Weights = Literal["equal", "progressive"]
TURN_WEIGHTS: Mapping[Weights, Callable[[int], float]] = {"equal": lambda n: 1.0, "progressive": float}


class EveryTurnOptions(Options):
    """The loss of each turn, as if the loop had ended there."""

    weight: float = Field(1.0, gt=0, description="of this term")
    weights: Weights = Field("equal", description="of the turns: all alike, or turn n of N by n / (1 + ... + N)")


@dataclass(frozen=True)
class EveryTurn:
    """w_1 L_1 + ... + w_N L_N with L_n = -log p_n(label) of turn n; the w_n sum to one."""

    wants_teacher: ClassVar[bool] = False
    wants_turns: ClassVar[bool] = True
    weight: float = 1.0
    weights: Weights = "equal"

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor:
        """labels (B, T), aligned -> (B, T)."""
        losses = torch.stack(trace.nll_by_turn(labels))
        each = [TURN_WEIGHTS[self.weights](n) for n in range(1, len(losses) + 1)]
        share = losses.new_tensor(each)[:, None, None] / sum(each)
        return self.weight * (share * losses).sum(0)

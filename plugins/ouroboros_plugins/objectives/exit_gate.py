"""The expected loss, with depth kept open."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ouroboros_core.options import Options
from ouroboros_core.trace import Trace
from ouroboros_plugins.objectives.expected import expected_loss, log, shares


class ExitGateObjectiveOptions(Options):
    """In place of `next-token`: the expected loss, less the entropy of the exit (Ouro, stage I)."""

    beta: float = Field(0.1, ge=0, description="what a nat of entropy is worth; published: 0.1, later 0.05")


@dataclass(frozen=True)
class ExitGate:
    """sum_n p_n L_n - beta H(p), H(p) = -sum_n p_n log p_n (Ouro, ByteDance 2025, stage I).

    Up to a constant that is the divergence from a uniform prior. p_n: how likely turn n is to be the last; L_n: its
    loss, had the loop ended there. Stage II, which trains the gate alone on what each turn gains, is not here.
    """

    wants_teacher: ClassVar[bool] = False
    wants_turns: ClassVar[bool] = True
    beta: float = 0.1

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor:
        """labels (B, T), aligned -> (B, T)."""
        p = shares(trace)
        return expected_loss(trace, labels) + self.beta * (p * log(p)).sum(0)

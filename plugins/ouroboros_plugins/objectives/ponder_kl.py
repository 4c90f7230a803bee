"""The expected loss, with depth drawn towards a geometric prior."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ouroboros_core.options import Options
from ouroboros_core.trace import Trace
from ouroboros_plugins.objectives.expected import expected_loss, log, shares


class PonderKLOptions(Options):
    """In place of `next-token`: the expected loss, and a divergence from a geometric prior (PonderNet)."""

    beta: float = Field(0.01, ge=0, description="the price of a nat of divergence from the prior")
    prior: float = Field(0.2, gt=0, lt=1, description="the prior's probability of halting after any turn")


@dataclass(frozen=True)
class PonderKL:
    """sum_n p_n L_n + beta KL(p || G) with G_n ~ prior (1 - prior)^(n-1) for n = 1 .. N, summing to one (Banino 2021).

    p_n: how likely turn n is to be the last; L_n: its loss, had the loop ended there.
    """

    wants_teacher: ClassVar[bool] = False
    wants_turns: ClassVar[bool] = True
    beta: float = 0.01
    prior: float = 0.2

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor:
        """labels (B, T), aligned -> (B, T)."""
        p = shares(trace)
        going_on = torch.arange(len(p), device=p.device, dtype=p.dtype) * torch.tensor(1 - self.prior).log().item()
        log_prior = going_on.log_softmax(0)[:, None, None]
        return expected_loss(trace, labels) + self.beta * (p * (log(p) - log_prior)).sum(0)

"""The Universal Transformer's highway gate."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.options import Options
from ouroboros_plugins.gates.layer_scale import START

Source = Literal["old", "new", "prelude"]


class HighwayGateOptions(Options):
    """Blend old and new state through a sigmoid of what it is told to read."""

    reads: list[Source] = Field(
        ["old", "new", "prelude"],
        min_length=1,
        description="what opens the gate: s, t and i of tensor2tensor, which finds i alone usually better",
    )
    bias: float = Field(-1.0, description="before the sigmoid, at the start; -1 takes 27 % of the new state")
    layer_scale: float | None = Field(None, gt=0, description=START)


class HighwayGate(nn.Module):
    """t = sigmoid(W [reads] + b), s' = t s_new + (1 - t) s_old (Dehghani 2018, as in tensor2tensor).

    W starts Glorot-uniform. tensor2tensor also sends t through what it puts around every layer: dropout, and where a
    single input is read, a norm before and a residual sum behind. None of that is done here.
    """

    def __init__(self, width: int, reads: Sequence[Source], bias: float = -1.0) -> None:
        super().__init__()
        self.reads = tuple(reads)
        self.open = nn.Linear(len(self.reads) * width, width)
        nn.init.xavier_uniform_(self.open.weight)
        nn.init.constant_(self.open.bias, bias)

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        seen = {"old": old, "new": new, "prelude": turn.prelude}
        gate = torch.sigmoid(self.open(torch.cat([seen[name] for name in self.reads], dim=-1)))
        return gate * new + (1 - gate) * old

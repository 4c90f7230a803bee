"""The identity-biased gate."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.options import Options
from ouroboros_plugins.gates.layer_scale import START


class SigmoidGateOptions(Options):
    """Blend old and new state through a learned sigmoid."""

    bias: float = Field(-2.0, description="before the sigmoid, at the start; -2 keeps 88 % of the old state")
    layer_scale: float | None = Field(None, gt=0, description=START)


class SigmoidGate(nn.Module):
    """g = sigmoid(W [h_new; h_old] + b), h = g h_new + (1 - g) h_old (Ouroboros, eq. 4). W = 0 at the start."""

    def __init__(self, width: int, bias: float = -2.0) -> None:
        super().__init__()
        self.open = nn.Linear(2 * width, width)
        nn.init.zeros_(self.open.weight)
        nn.init.constant_(self.open.bias, bias)

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        gate = torch.sigmoid(self.open(torch.cat([new, old], dim=-1)))
        return gate * new + (1 - gate) * old

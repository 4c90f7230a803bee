"""What `exit-gate` and `ponder` have in common: how likely each turn is to be the last."""

import torch
from torch import Tensor, nn

from ouroboros_core.contracts import Turn


class ExitShares(nn.Module):
    """p_t = l_t (1 - p_1 - ... - p_{t-1}), l_t = sigmoid(w x_t + b). The last turn takes what is left.

    That is l_t (1 - l_1) ... (1 - l_{t-1}): to end now, having gone on until now. At the start w = 0, so that l_t is
    sigmoid(b) everywhere; w has a gradient all the same, for x_t is not zero.
    """

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.unit = nn.Linear(width, 1)
        nn.init.zeros_(self.unit.weight)
        nn.init.constant_(self.unit.bias, bias)

    def forward(self, x: Tensor, turn: Turn) -> Tensor:  # (B, T, D) -> (B, T)
        """The share of this turn."""
        left = 1 - turn.spent
        p = torch.sigmoid(self.unit(x).squeeze(-1).float()) * left
        # a `where`, so that a step of one turn leaves the unit a gradient of zero: parallel training waits for one
        return torch.where(torch.full_like(turn.mask, turn.last), left, p)

"""Adaptive computation time, token by token."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Halt, Turn
from ouroboros_core.options import Options

HIDDEN = 256


class ACTOptions(Options):
    """A learned probability of halting after each turn (Graves 2016)."""

    bias: float = Field(-2.0, description="of the halting unit at the start; zero or more makes depth collapse")
    epsilon: float = Field(0.01, gt=0, lt=1, description="a token stops when its probabilities reach 1 - epsilon")


class ACTHalter(nn.Module):
    """p_n = sigmoid(unit(h_n)); N = the first n with p_1 + ... + p_n >= 1 - eps; weights p_1 .. p_{N-1}, then R.

    R = 1 - (p_1 + ... + p_{N-1}), so the weights sum to one. The last turn takes the remainder in any case. The unit is
    the paper's: D -> 256 -> 256 -> 1 with SiLU, its last layer zero with a bias of -2.
    """

    adaptive = True

    def __init__(self, width: int, bias: float = -2.0, epsilon: float = 0.01) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.unit = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1)
        )
        last = self.unit[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, bias)

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D) -> stop and weight (B, T)."""
        p = torch.sigmoid(self.unit(new).squeeze(-1).float())
        stop = turn.spent + p >= 1 - self.epsilon
        if turn.last:
            stop = torch.ones_like(stop)
        return Halt(stop, torch.where(stop, 1 - turn.spent, p))

"""Adaptive computation time, token by token."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Halt, Turn
from ouroboros_core.options import Options

HIDDEN = 256
Unit = Literal["mlp", "linear"]


class ACTOptions(Options):
    """A learned probability of halting after each turn (Graves 2016)."""

    unit: Unit = Field("mlp", description="what the probability is read with: D -> 256 -> 256 -> 1, or one linear map")
    bias: float = Field(
        -2.0,
        description="of the halting unit at the start; tensor2tensor has 1.0, but zero or more is reported, "
        "second-hand, to make depth collapse in most runs",
    )
    epsilon: float = Field(0.01, gt=0, lt=1, description="a token stops when its probabilities reach 1 - epsilon")


class ACTHalter(nn.Module):
    """p_n = sigmoid(unit(h_n)); N = the first n with p_1 + ... + p_n >= 1 - eps; weights p_1 .. p_{N-1}, then R.

    R = 1 - (p_1 + ... + p_{N-1}), so the weights sum to one. The last turn takes the remainder in any case. The unit is
    that of the Ouroboros public code, D -> 256 -> 256 -> 1 with SiLU, or one linear map (Dehghani 2018). Its last
    layer starts at zero with the given bias.
    """

    adaptive, weighted = True, True

    def __init__(self, width: int, bias: float = -2.0, epsilon: float = 0.01, unit: Unit = "mlp") -> None:
        super().__init__()
        self.epsilon = epsilon
        self.unit = UNITS[unit](width)
        last = self.unit[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, bias)

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D) -> stop and share (B, T)."""
        p = torch.sigmoid(self.unit(new).squeeze(-1).float())
        stop = turn.spent + p >= 1 - self.epsilon
        if turn.last:
            stop = torch.ones_like(stop)
        return Halt(stop, torch.where(stop, 1 - turn.spent, p))


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1)
    )


UNITS: Mapping[Unit, Callable[[int], nn.Sequential]] = {
    "mlp": _mlp,
    "linear": lambda width: nn.Sequential(nn.Linear(width, 1)),
}

"""A learned exit that is drawn."""

import math
import random

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Halt, Turn
from ouroboros_core.options import Options
from ouroboros_plugins.halters.exit_shares import ExitShares

BLOCK = 64  # positions drawn together


class PonderHalterOptions(Options):
    """A learned probability of halting after each turn, and a drawn turn at evaluation (PonderNet, Banino 2021)."""

    prior: float = Field(0.2, gt=0, lt=1, description="the probability of halting after any turn, at the start")


class PonderHalter(nn.Module):
    """p_t = l_t (1 - l_1) ... (1 - l_{t-1}), l_t = sigmoid(w h_t + b); at the start l_t = prior.

    In training nobody stops, and the objective weighs every turn by p_t. At evaluation the turn is drawn from p: a
    token stops when p_1 + ... + p_t exceeds u, uniform in [0, 1), which is the same as tossing for each l_t. u is a
    function of the turn's seed and the position: padding, batch order and the length of the sequence do not change it,
    and every row of a batch has the same u at the same position. The published model tosses for each row by itself.
    """

    weighted = False

    def __init__(self, width: int, prior: float = 0.2) -> None:
        super().__init__()
        self.shares = ExitShares(width, math.log(prior / (1 - prior)))

    @property
    def adaptive(self) -> bool:
        """Only at evaluation."""
        return not self.training

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D) -> stop and share (B, T)."""
        share = self.shares(new, turn)
        if self.training:
            return Halt(torch.zeros_like(turn.mask), share)
        return Halt(turn.spent + share > uniform(turn.seed, turn.positions), share)


def uniform(seed: int, positions: Tensor) -> Tensor:
    """A number in [0, 1) for each position, the same wherever the position occurs. (B, T) -> (B, T)."""
    if positions.is_meta:  # where costs are counted, positions have no values
        return torch.empty_like(positions, dtype=torch.float32)
    first, last = (int(position) // BLOCK for position in positions.aminmax())
    drawn = torch.cat([_block(seed, block) for block in range(first, last + 1)])
    return drawn.to(positions.device)[positions - first * BLOCK]


def _block(seed: int, block: int) -> Tensor:
    """(BLOCK), drawn on the CPU so that devices agree, and apart from what other parts draw by seed and position."""
    generator = torch.Generator().manual_seed(random.Random(f"ponder/{seed}/{block}").getrandbits(32))
    return torch.rand(BLOCK, generator=generator, device="cpu")

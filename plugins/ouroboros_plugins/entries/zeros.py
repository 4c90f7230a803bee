"""From nothing, with the prelude added at every turn."""

import torch
from torch import Tensor, nn

from ouroboros_core.contracts import Turn


class FromZeros(nn.Module):
    """z_0 = 0, z_{t+1} = f(z_t + prelude) (Yang 2023). The first turn is that of `carry`."""

    def start(self, prelude: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return torch.zeros_like(prelude)

    def inject(self, state: Tensor, prelude: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        return state + prelude

"""No gate."""

from torch import Tensor, nn

from ouroboros_core.contracts import Turn


class NoGate(nn.Module):
    """The new state, whole."""

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        return new

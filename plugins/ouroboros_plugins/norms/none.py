"""No norm."""

from torch import Tensor, nn

from ouroboros_core.contracts import Turn


class NoNorm(nn.Module):
    """The state, untouched."""

    def forward(self, state: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return state

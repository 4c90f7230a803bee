"""No modulation."""

from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import Ops


class NoModulation(nn.Module):
    """No ops: the block's own weights at every turn."""

    def forward(self, state: Tensor, turn: Turn) -> Ops:
        """state (B, T, D)."""
        return {}

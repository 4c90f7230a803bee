"""The sum of old and new state."""

from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.options import Options
from ouroboros_plugins.gates.layer_scale import START


class ResidualOptions(Options):
    """Add the new state to the old."""

    layer_scale: float | None = Field(None, gt=0, description=START)


class Residual(nn.Module):
    """s' = s_old + s_new (residual thinking connection, Chen 2025, without its step encoding).

    The block has residual branches of its own, so without a norm the state about doubles at every turn. The published
    sum of the turns' outputs leaves out what the loop starts from; so does this one where the entry starts from zeros.
    """

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        return old + new

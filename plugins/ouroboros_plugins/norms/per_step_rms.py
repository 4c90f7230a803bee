"""One RMSNorm scale a turn."""

from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.options import Options
from ouroboros_core.tables import TurnTable


class PerStepRMSOptions(Options):
    """RMSNorm with a learned scale for each turn."""

    rows: int = Field(64, ge=1, description="turns there is room for; later ones reuse the last trained row")
    eps: float = Field(1e-6, gt=0, description="added to the mean square")


class PerStepRMS(nn.Module):
    """h * rsqrt(mean(h^2) + eps) * scale_t (Ouroboros, eq. 5), in float32. Scales start at one."""

    def __init__(self, width: int, rows: int, trained: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = TurnTable(rows, trained, width, fill=1.0)
        self.eps = eps

    def forward(self, state: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        wide = state.float()
        wide = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (wide * self.scale(turn.index)).to(state.dtype)

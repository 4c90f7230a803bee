"""Norms inside the block that differ from turn to turn."""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import Ops, Scale
from ouroboros_core.options import Options
from ouroboros_core.tables import TurnTable


class PerLevelOptions(Options):
    """A learned factor for each turn on the scale of every norm inside the block."""

    rows: int = Field(64, ge=1, description="turns there is room for; later ones reuse the last trained row")


class PerLevel(nn.Module):
    """branch(norm(x) * f_t), with a factor f_t (D) for each turn and branch, starting at one (RingFormer, Heo 2025).

    RingFormer has separate norms for each turn. A norm's scale times a factor of the turn gives the same functions in
    another parametrisation, which starts as the base's own norms. The state itself is left untouched.
    """

    def __init__(self, sites: Sequence[str], width: int, rows: int, trained: int) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.factors = TurnTable(rows, trained, len(self.sites), width, fill=1.0)

    def forward(self, state: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return state

    def inside(self, turn: Turn) -> Ops:
        """A scale (D) behind the norm of every branch."""
        return {site: [Scale(factor)] for site, factor in zip(self.sites, self.factors(turn.index), strict=True)}

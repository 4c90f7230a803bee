"""The paper's ablation of the controller: the same directions, scaled by turn only."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import Ops
from ouroboros_core.options import Options
from ouroboros_core.tables import TurnTable
from ouroboros_plugins.modulators.bases import FrozenBases


class StaticOptions(Options):
    """One learned diagonal a turn, on the controller's bases (Ouroboros, section 5.1)."""

    rank: int = Field(32, ge=1, description="directions a linear")
    alpha: float = Field(16.0, gt=0, description="deltas are scaled by alpha / rank")
    rows: int = Field(64, ge=1, description="turns there is room for; later ones reuse the last trained row")


class StaticDiagonal(nn.Module):
    """f_k(t): a table (rows, taps, R) of zeros. Nothing of it depends on the input."""

    def __init__(self, bases: FrozenBases, rank: int, rows: int, trained: int) -> None:
        super().__init__()
        self.bases = bases
        self.diagonals = TurnTable(rows, trained, len(bases.names), rank)

    def forward(self, state: Tensor, turn: Turn) -> Ops:
        """state (B, T, D) -> a low-rank op for every tap, its core (R)."""
        ops: Ops = self.bases(self.diagonals(turn.index))
        return ops

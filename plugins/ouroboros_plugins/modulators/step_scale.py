"""A vector that multiplies what a turn is given, or what it makes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import Ops, Scale
from ouroboros_core.options import Options
from ouroboros_core.tables import TurnTable


class StepScaleOptions(Options):
    """Multiply a turn's input or output by a learned vector (Bae 2024; Inner Thinking Transformer, Chen 2025)."""

    on: Literal["input", "output"] = Field(
        "input", description="input: of the block, as Bae's recursion encoding; output: as Chen's step encoding"
    )
    rows: int = Field(64, ge=1, description="turns there is room for; later ones reuse the last trained row")


class StepScale(nn.Module):
    """x * phi_t at one place of the block, phi_t (D) learned for every turn. All start at one.

    Args:
        place: whose stream of states is multiplied.
        width: D.
        rows: rows of the table.
        trained: the most turns a training step takes.
    """

    def __init__(self, place: str, width: int, rows: int, trained: int) -> None:
        super().__init__()
        self.place = place
        self.scale = TurnTable(rows, trained, width, fill=1.0)

    def forward(self, state: Tensor, turn: Turn) -> Ops:
        """state (B, T, D) -> one scale (D)."""
        return {self.place: [Scale(self.scale(turn.index))]}

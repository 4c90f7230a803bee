"""Low-rank changes whose factors are learned turn by turn: the module behind `lora` and `level-signal`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import LowRank, Ops
from ouroboros_core.tables import MORE_ROWS, TurnTable

Starts = Mapping[str, tuple[Tensor, Tensor]]  # of every place: A (N, R, in) and B (N, out, R), a row for each turn


class TurnLowRank(nn.Module):
    """y + B_t A_t x at several places of the block, both factors trained, a pair for every turn.

    Args:
        starts: what the factors of every place start as.
        trained: the most turns a training step takes.
        remedy: what a user can do who trains more turns than there are rows.
    """

    def __init__(self, starts: Starts, trained: int, remedy: str = MORE_ROWS) -> None:
        super().__init__()
        self.places = tuple(starts)
        self.down = nn.ModuleList(TurnTable.starting(down, trained, remedy) for down, _ in starts.values())
        self.up = nn.ModuleList(TurnTable.starting(up, trained, remedy) for _, up in starts.values())

    def forward(self, state: Tensor, turn: Turn) -> Ops:
        """state (B, T, D) -> a low-rank op for every place."""
        tables = zip(self.places, self.down, self.up, strict=True)
        return {place: [LowRank(down(turn.index), up(turn.index))] for place, down, up in tables}

"""Learned rows by turn, in one place, so that every check knows which rows can be reached."""

import torch
from torch import Tensor, nn

from ouroboros_core.errors import UserError


class TurnTable(nn.Module):
    """One learned row for each turn. Turns beyond those trained reuse the last trained row.

    Args:
        rows: rows to allocate; published systems keep room for more turns than they train.
        trained: the most turns a training step takes; rows from here on are never reached.
        shape: of one row.

    Raises:
        UserError: more turns are trained than there are rows.
    """

    def __init__(self, rows: int, trained: int, *shape: int, fill: float = 0.0) -> None:
        super().__init__()
        if trained > rows:
            raise UserError(f"{trained} turns are trained but the part has rows for {rows}: raise its `rows`")
        self.trained = trained
        self.weight = nn.Parameter(torch.full((rows, *shape), fill))

    def row(self, turn: int) -> int:
        """The row that a turn reads."""
        return min(turn, self.trained - 1)

    def forward(self, turn: int) -> Tensor:  # -> shape
        """What a turn reads."""
        return self.weight[self.row(turn)]

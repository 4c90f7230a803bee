"""Learned rows by turn, in one place, so that every check knows which rows can be reached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ouroboros_core.errors import UserError

MORE_ROWS = "raise its `rows`"


class TurnTable(nn.Module):
    """One learned row for each turn. Turns beyond those trained reuse the last trained row.

    Args:
        rows: rows to allocate; published systems keep room for more turns than they train.
        trained: the most turns a training step takes; rows from here on are never reached.
        shape: of one row.
        fill: what the rows start as.
        remedy: what a user can do who has too few rows.

    Raises:
        UserError: more turns are trained than there are rows.
    """

    def __init__(self, rows: int, trained: int, *shape: int, fill: float = 0.0, remedy: str = MORE_ROWS) -> None:
        super().__init__()
        if trained > rows:
            raise UserError(f"{trained} turns are trained but the part has rows for {rows}: {remedy}")
        self.trained = trained
        self.weight = nn.Parameter(torch.full((rows, *shape), fill))

    @classmethod
    def starting(cls, rows: Tensor, trained: int, remedy: str = MORE_ROWS) -> TurnTable:
        """A table that starts as these rows, kept in float32. rows (N, *shape).

        Raises:
            UserError: more turns are trained than there are rows.
        """
        table = cls(len(rows), trained, remedy=remedy)
        table.weight = nn.Parameter(rows.detach().float().clone())
        return table

    def row(self, turn: int) -> int:
        """The row that a turn reads."""
        return min(turn, self.trained - 1)

    def forward(self, turn: int) -> Tensor:  # -> shape
        """What a turn reads."""
        return self.weight[self.row(turn)]

"""Exit when a turn no longer moves the state."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Halt, Turn
from ouroboros_core.options import Options


class LatentDiffOptions(Options):
    """Exit at evaluation, without training, when the state settles (Geiping 2025, public code)."""

    threshold: float = Field(0.03, gt=0, description="a token stops when a turn moves its state by a smaller share")


class LatentDiffHalter(nn.Module):
    """At evaluation a token stops when ||new - old|| / ||new|| < threshold.

    Nobody stops after the first turn, whose old state is no turn's work, and in training nobody stops at all.
    """

    weighted = False

    def __init__(self, threshold: float = 0.03) -> None:
        super().__init__()
        self.threshold = threshold

    @property
    def adaptive(self) -> bool:
        """Only at evaluation."""
        return not self.training

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D) -> stop (B, T)."""
        if self.training or turn.index == 0:
            return Halt(torch.zeros_like(turn.mask))
        after = new.detach().float()
        moved = (after - old.detach().float()).norm(dim=-1)
        return Halt(moved < self.threshold * after.norm(dim=-1))

"""A signal of the turn, and perhaps of the position, in the block's input."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import STATE, Add, Ops
from ouroboros_core.options import Options
from ouroboros_core.tables import TurnTable

ROWS = 64
WAVELENGTH = 10_000  # Vaswani 2017, section 3.5


class StepEmbeddingOptions(Options):
    """Tell each turn which one it is, by a signal in its input (Universal Transformer, Dehghani 2018)."""

    kind: Literal["sinusoid", "learned"] = Field(
        "sinusoid", description="sinusoid: fixed waves, which change the model from the start; learned: rows of zeros"
    )
    positions: bool = Field(False, description="add the waves of each token's position as well, at every turn")
    rows: int | None = Field(None, ge=1, description=f"of a learned table: turns there is room for; None: {ROWS}")


class StepEmbedding(nn.Module):
    """x + P_step(t) + P_position(i), before every turn, with P(i)_2j = sin(i / 10000^(2j/D)) and P(i)_2j+1 its cosine.

    Turns and positions are numbered from 0, which is our choice.

    Args:
        steps: a learned row (D) in place of P_step(t); None: the waves.
        positions: whether positions have a signal.
    """

    def __init__(self, steps: TurnTable | None, positions: bool) -> None:
        super().__init__()
        self.steps, self.positions = steps, positions

    def forward(self, state: Tensor, turn: Turn) -> Ops:
        """state (B, T, D) -> an addition to it, (D) or (B, T, D)."""
        width = state.shape[-1]
        signal: Tensor = (
            waves(torch.full((), turn.index, device=state.device), width)
            if self.steps is None
            else self.steps(turn.index)
        )
        return {STATE: [Add(signal + waves(turn.positions, width) if self.positions else signal)]}


def waves(index: Tensor, width: int) -> Tensor:
    """Sines and cosines in turn, in float32; an odd width ends with a sine. (...) -> (..., width)."""
    even = torch.arange(0, width, 2, device=index.device)
    angle = index[..., None] / WAVELENGTH ** (even / width)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :width]

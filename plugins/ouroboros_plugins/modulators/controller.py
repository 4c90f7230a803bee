"""The controller hypernetwork over frozen SVD bases."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import Ops
from ouroboros_core.options import Options
from ouroboros_core.tables import TurnTable
from ouroboros_plugins.modulators.bases import FrozenBases
from ouroboros_plugins.modulators.pooling import Pool, PoolName

SEEN, STEP, HIDDEN, STYLE = 256, 128, 256, 128  # widths of the paper's network; its public code agrees


class ControllerOptions(Options):
    """A network reads the state and scales frozen directions (Ouroboros, section 3.3)."""

    rank: int = Field(32, ge=1, description="directions a linear")
    alpha: float = Field(16.0, gt=0, description="deltas are scaled by alpha / rank")
    pool: PoolName = Field(
        "prefix-mean",
        description="what a token's row is made from; sequence-mean, the paper's, is not causal",
    )
    prompt: int | None = Field(None, ge=1, description="tokens of the prefix that `pool = prompt` averages")
    rows: int = Field(64, ge=1, description="turns there is room for; later ones reuse the last trained row")

    @model_validator(mode="after")
    def _prompt_goes_with_its_pool(self) -> Self:
        if (self.pool == "prompt") != (self.prompt is not None):
            raise ValueError("pool = 'prompt' and prompt = (a number of tokens) go together")
        return self

    @property
    def causal(self) -> bool:
        """Every pool but the paper's is."""
        return self.pool != "sequence-mean"


class Controller(nn.Module):
    """f_k = head_k(style([SiLU(W pool(h)); step embedding])): one diagonal for every tap, turn and token.

    The heads start at zero and the bases do not, so the controller starts as nothing and still has a gradient.

    Args:
        bases: the frozen directions of every tap.
        width: D.
        rank: R.
        pool: (B, T, D) -> (B, T, D), what row t may see.
        rows: rows of the step embedding.
        trained: the most turns a training step takes.
    """

    def __init__(self, bases: FrozenBases, width: int, rank: int, pool: Pool, rows: int, trained: int) -> None:
        super().__init__()
        self.bases, self.pool = bases, pool
        self.see = nn.Sequential(nn.Linear(width, SEEN), nn.SiLU())
        self.step = TurnTable(rows, trained, STEP)
        nn.init.normal_(self.step.weight)  # as an embedding starts
        self.style = nn.Sequential(nn.Linear(SEEN + STEP, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, STYLE), nn.SiLU())
        heads = [nn.Linear(STYLE, rank, bias=False) for _ in bases.names]
        for head in heads:
            nn.init.zeros_(head.weight)
        self.heads = nn.ModuleList(heads)

    def forward(self, state: Tensor, turn: Turn) -> Ops:
        """state (B, T, D) -> a low-rank op for every tap, its core (B, T, R)."""
        seen = self.see(self.pool(state, turn))
        step = self.step(turn.index).to(seen.dtype).expand(*seen.shape[:-1], -1)
        style = self.style(torch.cat([seen, step], dim=-1))
        heads = torch.cat([head.get_parameter("weight") for head in self.heads])  # one product: calls take the time
        ops: Ops = self.bases(functional.linear(style, heads).unflatten(-1, (len(self.heads), -1)))
        return ops

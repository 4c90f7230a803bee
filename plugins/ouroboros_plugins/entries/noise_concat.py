"""From noise, with the prelude beside the state at every turn."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.options import Options

LIKE_EMBEDDINGS = math.sqrt(2 / 5)  # Huginn: embeddings start with std sqrt(2 / (5 D)) and are scaled by sqrt(D)
INSIDE = math.erf(3 / math.sqrt(2))  # how much of a normal distribution lies within three standard deviations
BLOCK = 64  # positions drawn together


class NoiseConcatOptions(Options):
    """Start from truncated normal noise, and mix state and prelude linearly at every turn."""

    std: float | None = Field(None, ge=0, description="of the noise, before it is cut at 3 std; None: sqrt(2 / 5)")
    adapter: Literal["random", "prelude"] = Field(
        "random", description="how the mixing weights start: random, or [0 | I], which gives the block the prelude"
    )


class NoiseConcat(nn.Module):
    """s_0 = noise; the input of a turn is W [s; prelude], W (D, 2D) (Huginn, Geiping 2025; retrofits, McLeish 2025).

    The noise is a function of the turn's seed, the position and D: padding, batch order and the length of the sequence
    do not change it, and every row of a batch has the same noise at the same position. The published models draw each
    row by itself.
    """

    def __init__(self, width: int, std: float | None = None, adapter: Literal["random", "prelude"] = "random") -> None:
        super().__init__()
        self.std = LIKE_EMBEDDINGS if std is None else std
        self.mix = nn.Linear(2 * width, width, bias=False)
        if adapter == "prelude":
            nn.init.zeros_(self.mix.weight[:, :width])
            nn.init.eye_(self.mix.weight[:, width:])

    def start(self, prelude: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return (self.std * _noise(turn.seed % 2**63, turn.positions, prelude.shape[-1])).to(prelude.dtype)

    def inject(self, state: Tensor, prelude: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        mixed: Tensor = self.mix(torch.cat([state, prelude], dim=-1))
        return mixed


@torch.library.custom_op("ouroboros::noise", mutates_args=())  # no graph can look into it: blocks depend on values
def _noise(seed: int, positions: Tensor, width: int) -> Tensor:
    """Noise of unit scale at these positions. (B, T) -> (B, T, D)."""
    first, last = (int(position) // BLOCK for position in positions.aminmax())
    drawn = [_block(seed, block, width) for block in range(first, last + 1)]
    return torch.cat(drawn).to(positions.device)[positions - first * BLOCK]


@_noise.register_fake
def _(seed: int, positions: Tensor, width: int) -> Tensor:
    return positions.new_empty(*positions.shape, width, dtype=torch.float32)


def _block(seed: int, block: int, width: int) -> Tensor:
    """The noise of one block of positions, of unit scale: (BLOCK, D), drawn on the CPU so that devices agree."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + block) % 2**63)
    uniform = torch.empty(BLOCK, width, device="cpu").uniform_(-INSIDE, INSIDE, generator=generator)
    return math.sqrt(2) * uniform.erfinv()

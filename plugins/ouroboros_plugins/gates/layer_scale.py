"""LayerScale: how much each residual branch of the block counts, beside any gate."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ouroboros_core.contracts import LoopFacts, Turn
from ouroboros_core.ops import Ops, Scale

START = (
    "where learned factors on the block's residual branches start: LayerScale, 1e-4 in Chen 2026, which all but "
    "silences a trained block at first; None: no factors"
)


class LayerScale(nn.Module):
    """A gate, and x + lambda * branch(x) inside the block (Touvron 2021): one lambda (D) for each residual branch.

    Beside a bfloat16 stream most of a branch scaled by 1e-4 is rounded away: the lambdas learn all the same, but the
    gate sees little that is new until they have grown.

    Args:
        gate: mixes old and new state, as it would alone.
        sites: the outputs of the block's branches.
        start: of every lambda.
    """

    def __init__(self, gate: nn.Module, sites: Sequence[str], width: int, start: float) -> None:
        super().__init__()
        self.gate, self.sites = gate, tuple(sites)
        # a vector each, not one matrix: matrices are decayed, and a lambda is to stay what it has grown to
        self.scales = nn.ParameterList(torch.full((width,), start) for _ in self.sites)

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        mixed: Tensor = self.gate(old, new, turn)
        return mixed

    def inside(self, turn: Turn) -> Ops:
        """The same scales at every turn, each (D)."""
        return {site: [Scale(scale)] for site, scale in zip(self.sites, self.scales, strict=True)}


def scaled(gate: nn.Module, start: float | None, facts: LoopFacts) -> nn.Module:
    """The gate with LayerScale, or alone where no start is given."""
    return gate if start is None else LayerScale(gate, facts.sites("out"), facts.width, start)

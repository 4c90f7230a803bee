"""A second norm behind every residual branch of the block."""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import Normed, Ops
from ouroboros_core.options import Options


class SandwichOptions(Options):
    """RMSNorm on the residual stream behind each branch, and behind the loop."""

    eps: float = Field(1e-6, gt=0, description="added to the mean square")
    after_loop: bool = Field(True, description="one more norm on what the loop leaves, before the coda")


class Sandwich(nn.Module):
    """x <- n2(attention(n1 x) + x), x <- n4(ffn(n3 x) + x), and ln_f behind the loop (Huginn, Geiping 2025).

    n1 and n3 are the layer's own norms; n2, n4 and ln_f are RMSNorms with scales (D) that start at one and that all
    turns share.
    """

    def __init__(self, sites: Sequence[str], width: int, eps: float = 1e-6, after_loop: bool = True) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.norms = nn.ModuleList(WideRMSNorm(width, eps) for _ in self.sites)
        self.after = WideRMSNorm(width, eps) if after_loop else nn.Identity()

    def forward(self, state: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return state

    def inside(self, turn: Turn) -> Ops:
        """A norm at the sum behind every branch."""
        return {site: [Normed(norm)] for site, norm in zip(self.sites, self.norms, strict=True)}

    def read(self, state: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        read: Tensor = self.after(state)
        return read


class WideRMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * scale, in float32 whatever x is. The scale starts at one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        wide: Tensor = self.norm(x.float())
        return wide.to(x.dtype)

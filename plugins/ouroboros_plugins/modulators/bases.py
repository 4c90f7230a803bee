"""Frozen directions that a modulator scales."""

from collections.abc import Mapping

from torch import Tensor, nn

from ouroboros_core.ops import LowRank, Ops


class FrozenBases(nn.Module):
    """dW_k = (alpha / R) B_k diag(f_k) A_k for every tap k (Ouroboros, eq. 3). A and B are saved, never trained.

    Args:
        factors: of every tap, A (R, in) and B (out, R).
        scale: alpha / R.
    """

    def __init__(self, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> None:
        super().__init__()
        self.names, self.scale = tuple(factors), scale
        for name, (down, up) in factors.items():
            self.register_buffer(f"{_key(name)}_a", down)
            self.register_buffer(f"{_key(name)}_b", up)

    def forward(self, diagonals: Tensor) -> Ops:
        """The ops of these diagonals: (K, R) or (B, T, K, R), of all K taps."""
        scaled = (diagonals * self.scale).unbind(-2)
        return {name: [self._op(name, core)] for name, core in zip(self.names, scaled, strict=True)}

    def _op(self, name: str, core: Tensor) -> LowRank:
        return LowRank(getattr(self, f"{_key(name)}_a"), getattr(self, f"{_key(name)}_b"), core)


def _key(name: str) -> str:
    return name.replace(".", "_")  # modules and buffers may not have dots in their names

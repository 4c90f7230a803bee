"""The state carries everything."""

from torch import Tensor, nn

from ouroboros_core.contracts import Turn


class Carry(nn.Module):
    """h_0 = prelude; the input of a turn is the state itself."""

    def start(self, prelude: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return prelude

    def inject(self, state: Tensor, prelude: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        return state

"""The prelude, added anew at every turn."""

from torch import Tensor, nn

from ouroboros_core.contracts import Turn


class AddPrelude(nn.Module):
    """s_0 = prelude; the input of a turn is s + prelude."""

    def start(self, prelude: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return prelude

    def inject(self, state: Tensor, prelude: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        return state + prelude

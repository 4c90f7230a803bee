"""The base's final norm between turns."""

from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import STATE, Normed, Ops


class StepFinal(nn.Module):
    """Each turn but the first starts from final_norm(s) (Ouro, the LoopLM of ByteDance 2025). No parameters.

    Whoever reads a state applies that norm, so it is applied where the next turn takes it up: then every turn is read
    normed once, also by objectives and halters.
    """

    def forward(self, state: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D), untouched."""
        return state

    def inside(self, turn: Turn) -> Ops:
        """The norm, at the block's input."""
        return {STATE: [Normed(turn.reader.normed)]} if turn.index else {}

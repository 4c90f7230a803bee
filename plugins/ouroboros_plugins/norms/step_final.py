"""The base's final norm between turns."""

from torch import Tensor, nn

from ouroboros_core.contracts import Turn
from ouroboros_core.ops import STATE, Normed, Ops


class StepFinal(nn.Module):
    """Each turn but the first runs block(final_norm(x)) (Ouro, the LoopLM of ByteDance 2025). No parameters.

    x is the whole input of the block. With the entry `carry` it is the state s, as in the source: the head reads a
    state behind that same norm, so the norm is where the next turn takes the state up, and not where a turn leaves
    it; then each turn is read normed once, also by whoever reads it through the head or the turn's reader.

    Elsewhere this is not the source. With another entry x is what that makes of s and the prelude, and the mix is
    normed, not s alone; what a modulator does to the block's input, as `step-embedding` its signal, comes before the
    norm as well. A coda gets the last state as the last turn left it, unnormed, though every turn in between was
    taken up normed; the norm behind the coda is the base's own. Ouro has no coda.
    """

    def forward(self, state: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) -> (B, T, D), untouched."""
        return state

    def inside(self, turn: Turn) -> Ops:
        """The norm, as the last thing that happens to the block's input."""
        return {STATE: [Normed(turn.reader.normed)]} if turn.index else {}

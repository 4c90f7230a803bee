"""A learned exit at a quantile."""

from pydantic import Field
from torch import Tensor, nn

from ouroboros_core.contracts import Halt, Turn
from ouroboros_core.options import Options
from ouroboros_plugins.halters.exit_shares import ExitShares


class ExitGateOptions(Options):
    """A learned probability of exit after each turn (Ouro, ByteDance 2025)."""

    quantile: float = Field(0.5, gt=0, le=1, description="at evaluation a token stops when its probabilities reach it")
    bias: float = Field(0.0, description="of the gate at the start; 0: half of what is left stops at every turn")


class ExitGateHalter(nn.Module):
    """p_t = l_t (1 - l_1) ... (1 - l_{t-1}), l_t = sigmoid(w norm(h_t) + b), norm: the base's final one.

    In training nobody stops, and the objective weighs every turn by p_t. At evaluation a token stops at the first turn
    with p_1 + ... + p_t >= quantile. The last state is read, not a sum.
    """

    weighted = False

    def __init__(self, width: int, quantile: float = 0.5, bias: float = 0.0) -> None:
        super().__init__()
        self.quantile = quantile
        self.shares = ExitShares(width, bias)

    @property
    def adaptive(self) -> bool:
        """Only at evaluation."""
        return not self.training

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D) -> stop and share (B, T)."""
        share = self.shares(turn.reader.normed(new), turn)
        reached = turn.spent + share >= self.quantile
        return Halt(reached & (not self.training), share)

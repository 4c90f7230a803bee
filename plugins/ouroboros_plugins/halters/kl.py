"""Exit when a turn no longer changes what the model would say."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ouroboros_core.contracts import Halt, Turn
from ouroboros_core.options import Options


class KLOptions(Options):
    """Exit at evaluation, without training, when the next-token distribution settles (Geiping 2025)."""

    threshold: float = Field(5e-4, gt=0, description="a token stops when the divergence is below it, in nats")


class KLHalter(nn.Module):
    """At evaluation a token stops when KL(p_old || p_new) < threshold; p: its next-token distribution after a turn.

    The direction is that of the public code. Nobody stops after the first turn, before which nothing was read (the
    code compares with the uniform distribution there), and in training nobody stops at all. It costs the coda and the
    head once a turn, so it saves time only where the loop is much longer than they are.
    """

    weighted = False

    def __init__(self, threshold: float = 5e-4) -> None:
        super().__init__()
        self.threshold = threshold

    @property
    def adaptive(self) -> bool:
        """Only at evaluation."""
        return not self.training

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D) -> stop (B, T)."""
        never = Halt(torch.zeros_like(turn.mask))
        if self.training or turn.last:
            return never
        with torch.no_grad():
            before, after = turn.reader.before, turn.reader.logits(new)
            if before is None:
                return never
            before, after = (logits.float().log_softmax(-1) for logits in (before, after))
            divergence = F.kl_div(after, before, reduction="none", log_target=True).sum(-1)
        return Halt(divergence < self.threshold)

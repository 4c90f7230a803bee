"""What `ponder-kl` and `exit-gate` have in common: the loss to be expected when the halter's shares come true."""

import torch
from torch import Tensor

from ouroboros_core.trace import Trace


def shares(trace: Trace) -> Tensor:
    """How likely each turn is to be the last, (N, B, T)."""
    assert len(trace.shares) == len(trace.turns), "in training nobody stops, so every turn that is kept has a share"
    return torch.stack(list(trace.shares))


def expected_loss(trace: Trace, labels: Tensor) -> Tensor:
    """p_1 L_1 + ... + p_N L_N with L_n = -log p(label) of turn n. labels (B, T) -> (B, T)."""
    return (shares(trace) * torch.stack(trace.nll_by_turn(labels))).sum(0)


def log(p: Tensor) -> Tensor:
    """log p, held finite, so that p log p and its gradient are finite at p = 0."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()

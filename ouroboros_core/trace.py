"""What a forward pass leaves: a trace for objectives and evaluation to read, and what the library expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from ouroboros_core.losses import token_kl, token_nll


@dataclass(frozen=True)
class Trace:
    """The end of a forward pass. Logits are made only when asked for."""

    hidden: Tensor  # (B, T, D) after the final norm
    head: Tensor  # (V, D)
    taken: Tensor  # (B, T) turns each token took
    remainder: Tensor  # (B, T) share of its last state
    teacher: Trace | None = None  # the intact model on the same tokens
    turns: Sequence[Tensor] = ()  # (B, T, D) each turn's state, read like the last one; where an objective wants them
    shares: Sequence[Tensor] = ()  # (B, T) the probability that each turn is the last, where the halter gives any

    def logits(self) -> Tensor:
        """(B, T, V), in the hidden states' dtype."""
        return F.linear(self.hidden, self.head)

    def nll(self, labels: Tensor) -> Tensor:
        """Negative log-likelihood of aligned labels. (B, T) -> (B, T), nats."""
        return token_nll(self.hidden, self.head, labels)

    def nll_by_turn(self, labels: Tensor) -> list[Tensor]:
        """The same of every turn, as if the loop had ended there. (B, T) -> a list of (B, T), nats."""
        return [token_nll(hidden, self.head, labels) for hidden in self.turns]

    def kl_from(self, teacher: Trace, temperature: float) -> Tensor:
        """How far the model is from a teacher, token by token. -> (B, T), nats."""
        return token_kl(self.hidden, self.head, teacher.hidden, teacher.head, temperature)


@dataclass
class RecursiveOutput(CausalLMOutputWithPast):
    """The library's output, and how many turns each token took."""

    turns: Tensor | None = None  # (B, T)


def to_the_end(trace: Trace, turns: int) -> Trace:
    """The trace of all turns, where the loop ended since every token had halted: states stay, and shares are zero.

    Else what an objective makes of a token's turns would depend on how long the rest of the batch goes on. Taking these
    turns (`Depth.whole`) comes to the same, but would read rows by turn that nothing can teach.
    """
    left = turns - len(trace.turns)
    nothing = [torch.zeros_like(share) for share in trace.shares[-1:]]
    again = list(trace.turns[-1:])
    return replace(trace, turns=[*trace.turns, *again * left], shares=[*trace.shares, *nothing * left])

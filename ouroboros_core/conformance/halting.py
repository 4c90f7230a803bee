"""What must hold of halters: how many turns a token takes, and how likely each was to be its last."""

from __future__ import annotations

from typing import Any

import torch

from ouroboros_core.conformance.subject import SAME, Subject
from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.errors import CheckFailed
from ouroboros_core.model import RecursiveLM
from ouroboros_core.trace import Trace


@torch.no_grad()
def exits(subject: Subject) -> str:
    """A token takes between one turn and all; its shares sum to one, and R is the share of its last turn."""
    model, halter = subject.stirred(), subject.settings.one(Slot.HALTER)
    trace = model.trace(subject.ids)
    if not ((trace.taken >= len(model.loops)) & (trace.taken <= model.turns * len(model.loops))).all():
        raise CheckFailed(f"tokens took {trace.taken.min():g} to {trace.taken.max():g} turns of {model.turns}")
    loops: Any = model.loops
    if not any(parts.halter.adaptive for parts in loops) and trace.taken.min() < model.turns * len(model.loops):
        raise CheckFailed(f"halter '{halter.name}' stops tokens early and says that it is not adaptive")
    taught = model.train().trace(subject.ids, depth=Depth(model.turns, model.turns, whole=True))
    if bool(taught.shares) != halter.part.gives_shares:
        says, gives = ("gives", "none") if halter.part.gives_shares else ("gives no", "some")
        raise CheckFailed(f"halter '{halter.name}' says that it {says} shares in training, and there are {gives}")
    turns = f"between {trace.taken.min():g} and {trace.taken.max():g} turns, {trace.taken.mean():.2f} on average"
    if not taught.shares:
        return f"no shares; {turns}"
    _must_be_distribution(taught, model)
    _must_leave_last(taught, model)
    return f"shares sum to one over the turns; {turns}"


def _must_be_distribution(trace: Trace, model: RecursiveLM) -> None:
    if len(trace.shares) != model.turns:
        raise CheckFailed(f"{len(trace.shares)} of {model.turns} turns have a share: give one at every turn, or none")
    shares = torch.stack(list(trace.shares))
    if (least := shares.min().item()) < -SAME:
        raise CheckFailed(f"a share is {least:.1e}: it is a probability")
    if not (off := (shares.sum(0) - 1).abs().max().item()) <= SAME:
        raise CheckFailed(f"the shares of a token's turns miss one by {off:.1e}: the last turn must take the rest")


def _must_leave_last(trace: Trace, model: RecursiveLM) -> None:
    """R of the ponder cost. The trace adds N and R of several loops up, and then nothing is asked."""
    if len(model.loops) > 1:
        return
    last = torch.stack(list(trace.shares)).gather(0, trace.taken.long()[None] - 1)[0]
    if not torch.allclose(last, trace.remainder, atol=SAME):
        raise CheckFailed("the remainder is not the share of a token's last turn: R of the ponder cost is wrong")

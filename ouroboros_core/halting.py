"""The halting report: how many turns tokens take, what it costs them, and whether the halter still chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ouroboros_core.contracts import Depth
from ouroboros_core.data import Domain, align
from ouroboros_core.depth import Done, finite
from ouroboros_core.losses import IGNORE
from ouroboros_core.model import RecursiveLM
from ouroboros_core.passing import may_stop
from ouroboros_core.trace import to_the_end

COLLAPSED = 0.95  # share of tokens; where more take one number of turns, the halter does not choose


@dataclass(frozen=True)
class Took:
    """The tokens that took one number of turns."""

    turns: int
    tokens: int
    share: float  # of all tokens
    loss: float | None  # mean nats of these tokens, as they were read; None: there are none, or it is not a number


@dataclass(frozen=True)
class Halting:
    """What an adaptive halter does on one domain. Of several loops, the turns of a token are added up."""

    tokens: int
    turns: int  # that a token may take in one loop
    loops: int
    mean_turns: float
    at_first: float  # share of tokens that stopped as early as can be
    at_last: float  # share of tokens that took every turn
    loss: float | None  # mean nats of all tokens, as they were read
    took: Sequence[Took]  # from 1 turn to all turns of all loops
    if_read: Sequence[float | None]  # mean nats of all tokens, read after each turn of the last loop
    alarm: str | None


def halting_report(
    model: RecursiveLM, domains: Sequence[Domain], turns: int | None = None, *, batch: int = 8,
    done: Done = lambda rows: None,
) -> dict[str, Halting] | None:  # fmt: skip
    """What the halter does on each domain; None where no halter is adaptive.

    Args:
        turns: that a token may take in a loop; None: as many as at evaluation.
        done: hears how many rows have been read.
    """
    if not may_stop(model.eval()):
        return None
    return {domain.name: _on(model, domain, turns or model.turns, batch, done) for domain in domains}


@torch.no_grad()
def _on(model: RecursiveLM, domain: Domain, turns: int, batch: int, done: Done) -> Halting:
    loops = len(model.loops)
    count, nats, read = np.zeros(loops * turns + 1, int), np.zeros(loops * turns + 1), np.zeros(turns)
    for rows in domain.blocks.split(batch):
        ids, labels = align(rows.to(model.head.weight.device))
        trace = model.trace(ids, depth=Depth.full(turns), keep_turns=True)
        real = labels != IGNORE
        took, losses = trace.taken[real].round().long().cpu().numpy(), trace.nll(labels)[real].cpu().double().numpy()
        count += np.bincount(took, minlength=len(count))
        nats += np.bincount(took, losses, minlength=len(nats))
        read += [each.cpu().double().sum().item() for each in to_the_end(trace, turns).nll_by_turn(labels)]
        done(len(rows))
    return summed(count, nats, read, loops)


def summed(count: np.ndarray, nats: np.ndarray, read: np.ndarray, loops: int = 1) -> Halting:
    """The report of what was counted.

    Args:
        count: (loops * turns + 1,) tokens that took each number of turns, from 0.
        nats: (loops * turns + 1,) their summed losses.
        read: (turns,) summed losses of all tokens, read after each turn of the last loop.
    """
    tokens, most = int(count.sum()), len(count) - 1
    took = [
        Took(number, int(count[number]), float(count[number] / tokens), _mean(nats[number], count[number]))
        for number in range(1, most + 1)
    ]
    return Halting(
        tokens=tokens,
        turns=len(read),
        loops=loops,
        mean_turns=float((count * np.arange(most + 1)).sum() / tokens),
        at_first=float(count[loops] / tokens),
        at_last=float(count[most] / tokens),
        loss=_mean(nats.sum(), tokens),
        took=took,
        if_read=[_mean(value, tokens) for value in read],
        alarm=alarm(count, loops),
    )


def alarm(count: np.ndarray, least: int) -> str | None:
    """What is wrong where nearly all tokens take the same number of turns, though they need not.

    Args:
        count: tokens that took each number of turns, from 0.
        least: the fewest turns that a token may take.
    """
    most, usual = len(count) - 1, int(count.argmax())
    share = count[usual] / count.sum()
    if most == least or share <= COLLAPSED:
        return None
    if usual == most:
        return f"never stops early: {share:.1%} of the tokens take all {most} turns"
    return f"collapsed to {'one turn' if usual == 1 else f'{usual} turns'}: {share:.1%} of the tokens take so many"


def _mean(nats: float, tokens: int) -> float | None:
    return finite(nats / tokens) if tokens else None

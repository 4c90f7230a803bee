"""What depth does: held-out loss at other numbers of turns, and how far each turn still moves the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ouroboros_core.contracts import Depth, Halt, Turn
from ouroboros_core.data import Domain, align
from ouroboros_core.evaluation import Interval, interval, resampled, score
from ouroboros_core.loop import Parts
from ouroboros_core.losses import IGNORE
from ouroboros_core.model import RecursiveLM
from ouroboros_core.passing import may_stop

Where = Literal["below", "at", "beyond"]
Done = Callable[[int], None]  # hears how many rows have been read since it was last called


@dataclass(frozen=True)
class DepthRow:
    """Held-out loss at one number of turns."""

    turns: int
    where: Where  # of the trained depth
    loss: Interval | None  # nats a token; None: not a number, the loop ran away


@dataclass(frozen=True)
class DepthCurve:
    """Held-out loss by domain and number of turns."""

    trained: int  # the most turns that a training step took
    evaluated: int  # `loop.turns`
    cap: bool  # the halter is adaptive: these are the turns that a token may take, and it may stop before
    domains: Mapping[str, Sequence[DepthRow]]


@dataclass(frozen=True)
class Residual:
    """How far one turn moved the state, over all tokens. A value is None where it is not a number."""

    turn: int  # from 1
    mean: float | None  # of ||h_t - h_{t-1}|| / ||h_t||
    median: float | None  # of the same
    over_two: float | None  # mean of ||h_t - h_{t-2}|| / ||h_t||; None at the first turn
    norm: float | None  # mean of ||h_t||


@dataclass(frozen=True)
class Residuals:
    """The residuals of the turns, and of one more application.

    Where they go to zero the loop converges. Where they stay, and those over two turns go to zero, it alternates
    between two states. Where they stay and the norm grows, it diverges.
    """

    tokens: int
    held_back: bool  # the halter is adaptive, and was not asked: every token took every turn
    turns: Sequence[Residual]
    further: Residual


def depth_turns(trained: int, evaluated: int) -> list[int]:
    """Powers of two up to twice the larger depth, and the two depths themselves."""
    most = 2 * max(trained, evaluated)
    return sorted({trained, evaluated, *(2**power for power in range(most.bit_length()))})


def depth_curve(
    model: RecursiveLM, domains: Sequence[Domain], turns: Sequence[int], *, trained: int, batch: int = 8,
    resamples: int = 2000, done: Done = lambda rows: None,
) -> DepthCurve:  # fmt: skip
    """Read every domain once at each number of turns. With an adaptive halter, that number is a cap.

    Args:
        trained: the most turns that a training step took.
        resamples: bootstrap resamples behind each interval.
    """
    cap = may_stop(model.eval())

    def row(domain: Domain, count: int) -> DepthRow:
        with model.laid_out(count):
            heard = score(model, domain, batch, model.head.weight.device, done)
        value = float(heard.nll.sum() / heard.tokens.sum())
        loss = interval(value, resampled([heard], resamples)[0], len(heard.nll)) if np.isfinite(value) else None
        return DepthRow(count, where(count, trained), loss)

    found = {domain.name: [row(domain, count) for count in turns] for domain in domains}
    return DepthCurve(trained, model.turns, cap, found)


def where(turns: int, trained: int) -> Where:
    """Below, at or beyond the trained depth."""
    return "at" if turns == trained else "below" if turns < trained else "beyond"


@torch.no_grad()
def residuals(
    model: RecursiveLM, domains: Sequence[Domain], turns: int, *, batch: int = 8, done: Done = lambda rows: None
) -> Residuals:
    """How far each turn, and one more, moves the state of the last loop, over the scored tokens of all domains.

    It is the loop's own state, before coda and final norm, that is fed back. An adaptive halter is held back: of
    tokens that have stopped there is nothing to measure, and those that go on are the ones that have not settled. In
    bfloat16 a residual below 0.004 is rounding.
    """
    held_back = may_stop(model.eval())
    measured: list[np.ndarray] = []
    with watched(model) as watcher:
        for domain in domains:
            for rows in domain.blocks.split(batch):
                ids, labels = align(rows.to(model.head.weight.device))
                model.trace(ids, depth=Depth.full(turns + 1))
                measured.append(torch.stack(watcher.seen)[:, :, labels != IGNORE].cpu().numpy())
                done(len(rows))
    whole = np.concatenate(measured, axis=-1)  # (turns + 1, 3, tokens)
    *each, further = [_summed(number, values) for number, values in enumerate(whole, start=1)]
    return Residuals(whole.shape[-1], held_back, each, further)


class Watcher(nn.Module):
    """A halter that never stops, and notes how far each turn moved the state."""

    adaptive, weighted = False, False

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []  # of each turn, (3, B, T): moved, moved over two turns, norm

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D)."""
        if turn.index == 0:
            self.seen, self.before = [], old  # of another batch
        after = new.float()
        norm = after.norm(dim=-1)
        moved = [(after - then.float()).norm(dim=-1) for then in (old, self.before)]
        least = torch.finfo(norm.dtype).tiny
        self.seen.append(torch.stack([*(far / norm.clamp(min=least) for far in moved), norm]))
        self.before = old
        return Halt(torch.zeros_like(turn.mask))


@contextmanager
def watched(model: RecursiveLM) -> Iterator[Watcher]:
    """Within this scope a watcher stands in for the halter of the last loop."""
    watcher = Watcher()
    *others, last = _loops(model)
    with model.with_parts([*others, Parts(last.entry, last.modulator, last.norm, last.gate, watcher)]):
        yield watcher


def finite(value: Any) -> float | None:
    """A number that JSON can hold; None for one that is none."""
    return float(value) if np.isfinite(value) else None


def _summed(number: int, values: np.ndarray) -> Residual:
    moved, over_two, norm = values.astype(np.float64)
    two = None if number == 1 else finite(over_two.mean())
    return Residual(number, finite(moved.mean()), finite(np.median(moved)), two, finite(norm.mean()))


def _loops(model: nn.Module) -> list[Any]:
    return list(model.loops)  # type: ignore[arg-type]

"""The tokens that go on when others have stopped, gathered so that nothing else is computed."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ouroboros_core.contracts import Turn
from ouroboros_core.errors import UserError

WORTH = 0.75  # of a batch: if more of it goes on, gathering saves nothing
ASKED_LATE = (
    "a part asks for logits or sums at a turn, and did not at the turn before, so that nothing is known of tokens that "
    "have stopped: ask at every turn (for logits, but the last), or at none"
)


@dataclass(frozen=True)
class Few:
    """Some tokens of some rows of a batch (B, T), side by side: r rows of w tokens, the shorter ones filled up."""

    rows: Tensor  # (r) which rows of the batch
    at: Tensor  # (r, w) where in its row each token is
    real: Tensor  # (r, w) bool: false for what fills a row up

    @classmethod
    def of(cls, running: Tensor) -> Few | None:
        """Those that are running; None where it is not worth it, or none is. running (B, T) bool."""
        rows = running.any(-1).nonzero().squeeze(-1)
        going = running[rows]
        count = going.sum(-1)
        width = int(count.max()) if len(rows) else 0
        if not width or len(rows) * width > WORTH * running.numel():
            return None
        at = going.int().argsort(dim=-1, descending=True, stable=True)[:, :width]
        return cls(rows, at, torch.arange(width, device=running.device) < count[:, None])

    def take(self, whole: Tensor) -> Tensor:
        """(B, T, ...) -> (r, w, ...)."""
        return whole[self.rows[:, None], self.at]

    def put(self, whole: Tensor, few: Tensor) -> Tensor:
        """The whole with these tokens replaced. (B, T, ...), (r, w, ...) -> (B, T, ...)."""
        rows = self.rows[:, None].expand_as(self.at)[self.real]
        return whole.index_put((rows, self.at[self.real]), few[self.real].to(whole.dtype))

    def turn(self, turn: Turn) -> Turn:
        """What the turn knows, of these tokens."""
        return replace(
            turn, positions=self.take(turn.positions), mask=self.take(turn.mask) & self.real,
            spent=self.take(turn.spent), prelude=self.take(turn.prelude),
        )  # fmt: skip


@dataclass(frozen=True)
class Going:
    """Which tokens a turn computes."""

    running: Tensor  # (B, T) bool
    few: Few | None = None  # those alone, gathered; None: all are computed, and the stopped ones' results dropped

    def kept(self, before: Tensor | None, now: Tensor) -> Tensor:
        """What is new of those that run, and what was before of those that have stopped. (B, T, ...) each.

        Of the few, `now` is (r, w, ...). Where nothing was before, what stopped tokens get means nothing.
        """
        if self.few:
            return self.few.put(now.new_zeros(*self.running.shape, *now.shape[2:]) if before is None else before, now)
        if before is None:
            return now
        return torch.where(self.running.view(*self.running.shape, *[1] * (now.ndim - 2)), now, before)


class Carried:
    """Values of the tokens of a batch, turn by turn: one that has stopped keeps that of the last turn it took.

    Made in the grad mode of the forward pass: where gradient may flow, turns may be recomputed, and all are kept.
    """

    def __init__(self) -> None:
        self.left: dict[tuple[Hashable, int], Tensor] = {}
        self.recomputable = torch.is_grad_enabled()

    def __call__(self, name: Hashable, turn: int, now: Tensor, going: Going) -> Tensor:
        """Take what a turn has computed; returns it for the whole batch. (B or r, T or w, ...) -> (B, T, ...).

        Raises:
            UserError: the turn before computed nothing of this name.
        """
        if turn and (name, turn - 1) not in self.left:
            raise UserError(ASKED_LATE)
        whole = going.kept(self.left.get((name, turn - 1)), now)
        whole = whole if torch.is_grad_enabled() else whole.detach()  # the first turn's may be the loop's own input
        self.left[name, turn] = whole
        if not self.recomputable:
            self.left.pop((name, turn - 2), None)
        return whole

    def skipped(self, turn: int) -> Iterator[tuple[Hashable, Tensor]]:
        """What is left for a turn that nobody takes: everything of the turn before."""
        for name in [name for name, at in self.left if at == turn - 1]:
            self.left[name, turn] = self.left[name, turn - 1]
            yield name, self.left[name, turn]

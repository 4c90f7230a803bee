"""What must hold of decoding: a cache stands for the earlier tokens, and the tokens that go on do not miss the others.

Each check is made with the model's own halter, and with one that stops tokens by their position, so that tokens stop at
every turn whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ouroboros_core.conformance.subject import SAME, TOKENS, Subject, must_be_same, must_halt_alike
from ouroboros_core.contracts import Halt, Turn
from ouroboros_core.errors import CheckFailed, UserError
from ouroboros_core.loop import Parts
from ouroboros_core.model import RecursiveLM
from ouroboros_core.trace import Trace

TOGETHER = (7, 5, 4)  # tokens that come at once; the others follow one by one
PADDED = (0, 5, 22)  # tokens on the left of each row; the last soon stops altogether
CANNOT = "a part lets tokens see later ones: such a model cannot be decoded"
LOOKS = "looks along the sequence without turn.memory, or counts tokens in place of turn.positions"


class ByPosition(nn.Module):
    """A halter that lets a token take 1, 2, ... `turns` turns and so on, by its position."""

    adaptive, weighted = True, False

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Halt:
        """2 x (B, T, D) -> stop (B, T)."""
        return Halt(turn.positions % self.turns <= turn.index)


@torch.no_grad()
def cached(subject: Subject) -> str:
    """Tokens that come a few at a time, and one by one, get the logits and turns of one pass over all."""
    model = subject.stirred()
    if not model.config.causal:
        return CANNOT
    mask = _mask(subject)
    for halter, parts in _halters(model).items():
        what = f"decoding with a cache, {halter},"
        with model.with_parts(parts):
            whole = model.trace(subject.ids, mask)
            taken, logits = _piece_by_piece(model, subject.ids, mask)
        must_halt_alike(what, whole.taken[mask], taken[mask], f"the halter, or a part before it, {LOOKS}")
        must_be_same(what, whole.logits()[mask], logits[mask], f"a part {LOOKS}")
    told = ", ".join(map(str, TOGETHER))
    return f"{told} tokens at once and {TOKENS - sum(TOGETHER)} one by one are read as all at once"


@torch.no_grad()
def gathered(subject: Subject) -> str:
    """Where only the tokens that go on are computed, logits, turns and shares are those of computing all."""
    model = subject.stirred()
    if not model.config.causal:
        return CANNOT
    mask, means = _mask(subject), []
    for halter, parts in _halters(model).items():
        what = f"leaving out tokens that have stopped, {halter},"
        with model.with_parts(parts):
            few, every = (_gathering(model, gather, subject.ids, mask) for gather in (True, False))
        must_halt_alike(what, every.taken[mask], few.taken[mask], f"the halter, or a part before it, {LOOKS}")
        must_be_same(what, every.logits()[mask], few.logits()[mask], f"a part {LOOKS}")
        shares = zip(every.shares, few.shares, strict=True)
        if moved := [far for one, other in shares if not (far := (one - other)[mask].abs().max().item()) <= SAME]:
            raise CheckFailed(f"{what} moves shares by {max(moved):.1e}: the halter, or a part before it, {LOOKS}")
        means.append(f"{every.taken[mask].mean():.2f} turns, {halter}")
    return f"left out or not, tokens that have stopped change nothing: {'; '.join(means)}"


def _mask(subject: Subject) -> Tensor:
    """(ROWS, TOKENS) bool: rows padded on the left."""
    return torch.arange(TOKENS, device=subject.ids.device) >= torch.tensor(PADDED, device=subject.ids.device)[:, None]


def _halters(model: RecursiveLM) -> Mapping[str, Sequence[Parts]]:
    """The model's parts, and the same with a halter that stops tokens by position."""
    loops: Any = model.loops
    forced = [Parts(each.entry, each.modulator, each.norm, each.gate, ByPosition(model.turns)) for each in loops]
    return {"tokens stopping as they do": list(loops), "tokens stopping by position": forced}


def _gathering(model: RecursiveLM, gather: bool, ids: Tensor, mask: Tensor) -> Trace:
    model.gather = gather
    return model.trace(ids, mask)


def _piece_by_piece(model: RecursiveLM, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Through a cache. -> turns (B, T) and logits (B, T, V)."""
    cache, ends = DynamicCache(config=model.config), [0, *accumulate((*TOGETHER, *[1] * (TOKENS - sum(TOGETHER))))]
    try:
        pieces = [model.trace(ids[:, start:end], mask[:, :end], cache=cache) for start, end in pairwise(ends)]
    except UserError as error:  # one pass could be made, and decoding cannot: no mistake in the settings
        raise CheckFailed(str(error)) from error
    return torch.cat([piece.taken for piece in pieces], 1), torch.cat([piece.logits() for piece in pieces], 1)

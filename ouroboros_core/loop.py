"""The recursion: one turn, and turns repeated. Everything else in this project serves these two functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ouroboros_core.contracts import Depth, Halt, Inside, Reader, Reads, Turn
from ouroboros_core.ops import Ops, Taps, applied, merge

Block = Callable[[Tensor], Tensor]  # (B, T, D) -> (B, T, D), with positions, mask and rotary already bound


class Parts(nn.Module):
    """The parts that meet in a turn."""

    entry: Any  # not nn.Module, whose methods torch's types take for tensors
    halter: Any

    def __init__(
        self, entry: nn.Module, modulator: nn.Module, norm: nn.Module, gate: nn.Module, halter: nn.Module
    ) -> None:
        super().__init__()
        self.entry, self.modulator, self.norm, self.gate, self.halter = entry, modulator, norm, gate, halter

    def ops(self, state: Tensor, turn: Turn) -> Ops:
        """How this turn's block differs: the modulator's ops, and those of a norm or gate that acts inside it."""
        inner = [part.inside(turn) for part in (self.norm, self.gate) if isinstance(part, Inside)]
        return merge([self.modulator(state, turn), *inner])

    def read(self, state: Tensor) -> Tensor:
        """What the coda gets of a state. (B, T, D) -> (B, T, D)."""
        return self.norm.read(state).to(state.dtype) if isinstance(self.norm, Reads) else state


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens of a batch: (B, T) each."""

    positions: Tensor
    mask: Tensor  # bool, true for real tokens


@dataclass(frozen=True)
class Visit:
    """What a loop leaves behind."""

    read: Tensor  # (B, T, D) the read-out: the last state, or the weighted sum of the states
    taken: Tensor  # (B, T) turns each token took: N of Graves 2016
    remainder: Tensor  # (B, T) the share of its last state: R of Graves 2016
    states: list[Tensor] = field(default_factory=list)  # (B, T, D) after each turn, where they were asked for
    shares: list[Tensor] = field(default_factory=list)  # (B, T) of each turn, where the halter gives any


def turn(
    state: Tensor, prelude: Tensor, running: Tensor, turn: Turn, block: Block, taps: Taps, parts: Parts
) -> tuple[Tensor, Halt]:
    """One turn of the loop: the state of every running token moves on. state, prelude: (B, T, D)."""
    x = parts.entry.inject(state, prelude, turn)
    with applied(taps, parts.ops(state, turn)):  # weights differ only inside this block
        new = block(x)
    new = parts.norm(new, turn)
    new = parts.gate(state, new, turn).to(state.dtype)
    new = torch.where(running[..., None], new, state)  # a halted token stays as it was
    return new, parts.halter(state, new, turn)


def loop(
    prelude: Tensor, depth: Depth, tokens: Tokens, block: Block, taps: Taps, parts: Parts, reader: Reader, *,
    seed: int = 0, recompute: bool = False, keep_states: bool = False,
) -> Visit:  # fmt: skip
    """Repeat `turn` until `depth.turns` have passed, or every token has halted.

    Only the last `depth.with_gradient` turns carry gradient. With `recompute`, whole turns are recomputed in the
    backward pass instead of stored: never the block alone, which would run outside its scope of ops.
    """
    one_turn = partial(checkpoint, turn, use_reentrant=False) if recompute else turn
    running = torch.ones_like(tokens.mask)
    spent = torch.zeros_like(tokens.mask, dtype=torch.float32)
    taken, remainder = torch.zeros_like(spent), torch.zeros_like(spent)
    state, weighted = prelude, torch.zeros_like(prelude, dtype=torch.float32)
    states, shares = [], []
    first_with_gradient = depth.turns - depth.with_gradient
    for index in range(depth.turns):
        last = index == depth.turns - 1
        now = Turn(index, last, tokens.positions, tokens.mask, spent, prelude, reader, seed)
        if index == 0:
            state = parts.entry.start(prelude, now)
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= first_with_gradient):
            state, halt = one_turn(state, prelude, running, now, block, taps, parts)
            taken = taken + running
            if halt.share is not None:
                share = halt.share * running
                weighted = weighted + share[..., None] * state
                spent = spent + share
                remainder = torch.where(running & (halt.stop | last), share, remainder)
                shares.append(share)
        if keep_states:
            states.append(state)
        running = running & ~halt.stop
        may_end = parts.halter.adaptive and not depth.whole and index >= first_with_gradient
        if may_end and not running.any():
            break
    read = weighted.to(prelude.dtype) if parts.halter.weighted else state
    return Visit(read, taken, remainder, states, shares)

"""The recursion: one turn, and turns repeated. Everything else in this project serves these two functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ouroboros_core.contracts import Depth, Halt, Turn
from ouroboros_core.ops import Taps, applied

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
    remainder: Tensor  # (B, T) the weight of its last state: R of Graves 2016


def turn(
    state: Tensor, prelude: Tensor, running: Tensor, turn: Turn, block: Block, taps: Taps, parts: Parts
) -> tuple[Tensor, Halt]:
    """One turn of the loop: the state of every running token moves on. state, prelude: (B, T, D)."""
    x = parts.entry.inject(state, prelude, turn)
    with applied(taps, parts.modulator(state, turn)):  # weights differ only inside this block
        new = block(x)
    new = parts.norm(new, turn)
    new = parts.gate(state, new, turn).to(state.dtype)
    halt = parts.halter(state, new, turn)
    state = torch.where(running[..., None], new, state)  # a halted token stays as it was
    return state, halt


def loop(
    prelude: Tensor, depth: Depth, tokens: Tokens, block: Block, taps: Taps, parts: Parts, *,
    seed: int = 0, recompute: bool = False,
) -> Visit:  # fmt: skip
    """Repeat `turn` until `depth.turns` have passed, or every token has halted.

    Only the last `depth.with_gradient` turns carry gradient. With `recompute`, whole turns are recomputed in the
    backward pass instead of stored: never the block alone, which would run outside its scope of ops.
    """
    one_turn = partial(checkpoint, turn, use_reentrant=False) if recompute else turn
    running = torch.ones_like(tokens.mask)
    spent = torch.zeros_like(tokens.mask, dtype=torch.float32)
    taken, remainder = torch.zeros_like(spent), torch.zeros_like(spent)
    state, read = prelude, torch.zeros_like(prelude, dtype=torch.float32)
    first_with_gradient = depth.turns - depth.with_gradient
    for index in range(depth.turns):
        now = Turn(index, index == depth.turns - 1, tokens.positions, tokens.mask, spent, seed)
        if index == 0:
            state = parts.entry.start(prelude, now)
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= first_with_gradient):
            state, halt = one_turn(state, prelude, running, now, block, taps, parts)
            taken = taken + running
            if halt.weight is None:
                read = state
            else:
                weight = halt.weight * running
                read = read + weight[..., None] * state
                spent = spent + weight
                remainder = torch.where(running & halt.stop, weight, remainder)
        running = running & ~halt.stop
        if parts.halter.adaptive and index >= first_with_gradient and not running.any():
            break
    return Visit(read.to(prelude.dtype), taken, remainder)

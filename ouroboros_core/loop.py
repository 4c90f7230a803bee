"""The recursion: one turn, and turns repeated. Everything else in this project serves these two functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ouroboros_core.contracts import Depth, Halt, Memory, Reader, Turn
from ouroboros_core.few import Few, Going
from ouroboros_core.ops import Ops, Taps, applied, merge

Block = Callable[[Tensor], Tensor]  # (B, T, D) -> (B, T, D), with positions, mask, rotary and cache already bound


@dataclass(frozen=True)
class Scene:
    """What a turn works with, bound to the tokens that it computes."""

    block: Block
    reader: Reader
    memory: Memory


class Stage(Protocol):
    """Where a loop plays: the block with its taps, and what is kept of each turn for later turns and tokens."""

    taps: Taps

    def scene(self, turn: int, going: Going) -> Scene:
        """The block, reader and memory of a turn."""
        ...

    def skip(self, turn: int) -> None:
        """No token takes this turn any more: leave what later tokens will look for."""
        ...


class Parts(nn.Module):
    """The parts that meet in a turn."""

    entry: Any  # not nn.Module, whose methods torch's types take for tensors
    norm: Any
    gate: Any
    halter: Any

    def __init__(
        self, entry: nn.Module, modulator: nn.Module, norm: nn.Module, gate: nn.Module, halter: nn.Module
    ) -> None:
        super().__init__()
        self.entry, self.modulator, self.norm, self.gate, self.halter = entry, modulator, norm, gate, halter

    def ops(self, state: Tensor, turn: Turn) -> Ops:
        """How this turn's block differs: the modulator's ops, and those of a norm or gate that is `Inside`."""
        inner = [part.inside(turn) for part in (self.norm, self.gate) if hasattr(part, "inside")]
        return merge([self.modulator(state, turn), *inner])

    def read(self, state: Tensor) -> Tensor:
        """What the coda gets of a state. (B, T, D) -> (B, T, D)."""
        return self.norm.read(state).to(state.dtype) if hasattr(self.norm, "read") else state


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


def among_few(
    state: Tensor, few: Few, turn_of_all: Turn, block: Block, taps: Taps, parts: Parts
) -> tuple[Tensor, Halt]:  # fmt: skip
    """One turn of those tokens that have not halted, and of no others. state: (B, T, D)."""
    now = few.turn(turn_of_all)
    new, halt = turn(few.take(state), now.prelude, few.real, now, block, taps, parts)
    nothing = torch.zeros_like(turn_of_all.spent)
    share = None if halt.share is None else few.put(nothing, halt.share)
    return few.put(state, new), Halt(few.put(nothing.bool(), halt.stop), share)


class Tally:
    """What is counted of each token while it runs. mask (B, T) bool, state (B, T, D)."""

    def __init__(self, mask: Tensor, like: Tensor) -> None:
        self.running = mask
        self.spent = torch.zeros_like(mask, dtype=torch.float32)  # shares given so far
        self.taken, self.remainder = torch.zeros_like(self.spent), torch.zeros_like(self.spent)
        self.weighted = torch.zeros_like(like, dtype=torch.float32)
        self.shares: list[Tensor] = []

    def count(self, state: Tensor, halt: Halt, last: bool) -> None:
        """A turn is over, and left this state."""
        self.taken = self.taken + self.running
        if halt.share is not None:
            share = halt.share * self.running
            self.weighted = torch.addcmul(self.weighted, share[..., None], state.float())
            self.spent = self.spent + share
            self.remainder = torch.where(self.running & (halt.stop | last), share, self.remainder)
            self.shares.append(share)


def loop(
    prelude: Tensor, depth: Depth, tokens: Tokens, stage: Stage, parts: Parts, *,
    seed: int = 0, recompute: bool = False, keep_states: bool = False, gather: bool = False,
) -> Visit:  # fmt: skip
    """Repeat `turn` until `depth.turns` have passed, or every token has halted.

    Only the last `depth.with_gradient` turns carry gradient. With `recompute`, whole turns are recomputed in the
    backward pass instead of stored: never the block alone, which would run outside its scope of ops. With `gather`,
    tokens that have halted are no longer computed.
    """
    one_turn = partial(checkpoint, turn, use_reentrant=False) if recompute else turn
    may_end, first_with_gradient = parts.halter.adaptive and not depth.whole, depth.turns - depth.with_gradient
    tally, state, states = Tally(tokens.mask, prelude), prelude, []
    for index in range(depth.turns):
        last, running = index == depth.turns - 1, tally.running
        few = Few.of(running) if gather and may_end and index else None
        scene = stage.scene(index, Going(running, few))
        now = Turn(index, last, tokens.positions, tokens.mask, tally.spent, prelude, scene.reader, scene.memory, seed)
        if index == 0:
            state = parts.entry.start(prelude, now)
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= first_with_gradient):
            if few:
                state, halt = among_few(state, few, now, scene.block, stage.taps, parts)
            else:
                state, halt = one_turn(state, prelude, running, now, scene.block, stage.taps, parts)
            tally.count(state, halt, last)
        if keep_states:
            states.append(state)
        tally.running = running & ~halt.stop
        if may_end and index >= first_with_gradient and not tally.running.any():
            break
    for skipped in range(index + 1, depth.turns):
        stage.skip(skipped)
    read = tally.weighted.to(prelude.dtype) if parts.halter.weighted else state
    return Visit(read, tally.taken, tally.remainder, states, tally.shares)


def in_order(blocks: Sequence[Block]) -> Block:
    """One function that runs these, the first first."""
    return lambda h: reduce(lambda state, block: block(state), blocks, h)

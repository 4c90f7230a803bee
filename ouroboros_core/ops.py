"""Ops: the small closed set of ways in which a turn may change the block, and the scope in which they hold.

A turn returns ops for named places of the block; they are applied to activations, never to weights, so rows and
tokens of one batch may differ. There are two kinds of places, and each applies its ops in one order.

- A *linear* (`0.q`): low-rank deltas, summed on the same input, then output scales, then additions.
- A *site*, a place in the stream of states: additions, then scales, then low-rank deltas of the stream itself. Sites
  are the block's input (`state`) and three in each residual branch: its normed input (`0.ffn-in`), its output
  (`0.ffn-out`), and the sum behind it (`0.ffn-sum`). `state` and the sums take a norm too, as the last of their ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ouroboros_core.facts import SITES

STATE = "state"  # the block's input


@dataclass(frozen=True)
class Add:
    """x -> x + value. value: (D), (B, 1, D) or (B, T, D)."""

    value: Tensor


@dataclass(frozen=True)
class Scale:
    """x -> x * value. value: as for `Add`."""

    value: Tensor


@dataclass(frozen=True)
class LowRank:
    """y -> y + up (core * (down x)): a change of weight of rank R that may differ for each token.

    It is computed in the dtype of its factors, unless autocast says otherwise.
    """

    down: Tensor  # (R, in)
    up: Tensor  # (out, R)
    core: Tensor | None = None  # (R), (B, 1, R) or (B, T, R); None: ones

    def __call__(self, x: Tensor) -> Tensor:  # (B, T, in) -> (B, T, out)
        cast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        inner = nn.functional.linear(x if cast else x.to(self.down.dtype), self.down)
        inner = inner if self.core is None else inner * self.core.to(inner.dtype)
        return nn.functional.linear(inner, self.up)


@dataclass(frozen=True)
class Normed:
    """x -> norm(x), at the block's input or at the sum behind a branch."""

    norm: Callable[[Tensor], Tensor]  # (B, T, D) -> (B, T, D)


Op = Add | Scale | LowRank | Normed
Ops = Mapping[str, Sequence[Op]]


def merge(several: Iterable[Ops]) -> Ops:
    """The ops of several parts together: deltas and additions sum, scales multiply."""
    merged: dict[str, list[Op]] = {}
    for ops in several:
        for key, these in ops.items():
            merged.setdefault(key, []).extend(these)
    return merged


class Tap:
    """A forward hook on one linear of the block; idle until ops are applied to it."""

    takes: tuple[type, ...] = (LowRank, Scale, Add)

    def __init__(self, linear: nn.Module) -> None:
        self.ops: Sequence[Op] = ()
        linear.register_forward_hook(self)

    def __call__(self, linear: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        for op in self.ops:
            if isinstance(op, LowRank):
                y = y + op(args[0]).to(y.dtype)
        for op in self.ops:
            if isinstance(op, Scale):
                y = y * op.value.to(y.dtype)
        for op in self.ops:
            if isinstance(op, Add):
                y = y + op.value.to(y.dtype)
        return y


class Site:
    """A place in the stream of states that the block passes through; idle until ops are applied to it."""

    def __init__(self, name: str) -> None:
        self.ops: Sequence[Op] = ()
        normed = name == STATE or name.endswith("-sum")
        self.takes: tuple[type, ...] = (Add, Scale, LowRank, *([Normed] if normed else []))

    def __call__(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        if not self.ops:
            return x
        for op in self.ops:
            if isinstance(op, Add):
                x = x + op.value.to(x.dtype)
        for op in self.ops:
            if isinstance(op, Scale):
                x = x * op.value.to(x.dtype)
        stream = x
        for op in self.ops:
            if isinstance(op, LowRank):
                x = x + op(stream).to(x.dtype)
        for op in self.ops:
            if isinstance(op, Normed):
                x = op.norm(x).to(x.dtype)
        return x


Taps = Mapping[str, Tap | Site]


def sites(layers: int) -> dict[str, Site]:
    """The places in the stream of states of a block of so many layers: its input, and three in each branch."""
    inside = [f"{layer}.{site}" for layer in range(layers) for site in SITES]
    return {name: Site(name) for name in (STATE, *inside)}


@dataclass(frozen=True)
class Branches:
    """The residual branches of one layer of a block, with their sites."""

    sites: Mapping[str, Site]  # of the block
    layer: int  # its place in the block

    def __call__(
        self, name: str, h: Tensor, norm: Callable[[Tensor], Tensor], body: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """h + body(norm(h)), through the branch's sites. (B, T, D) -> (B, T, D)."""
        at = f"{self.layer}.{name}"
        x = self.sites[f"{at}-in"](norm(h))
        y = self.sites[f"{at}-out"](body(x))
        return self.sites[f"{at}-sum"](h + y)


@contextmanager
def applied(taps: Taps, ops: Ops) -> Iterator[None]:
    """Within this scope the block differs by `ops`; outside it is as it was.

    Raises:
        KeyError: an op names a place that the block does not have.
        TypeError: an op that this kind of place does not take.
    """
    if unknown := ops.keys() - taps.keys():
        raise KeyError(f"an op names {sorted(unknown)}; the block has {sorted(taps)}")
    for name, these in ops.items():
        if strange := [op for op in these if not isinstance(op, taps[name].takes)]:
            takes = ", ".join(kind.__name__ for kind in taps[name].takes)
            raise TypeError(f"{name} takes {takes}, and was given {type(strange[0]).__name__}")
    for name, these in ops.items():
        taps[name].ops = these
    try:
        yield
    finally:
        for name in ops:
            taps[name].ops = ()

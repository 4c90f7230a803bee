"""Ops: the small closed set of ways in which a turn may change the block, and the scope in which they hold.

A modulator returns ops; they are applied to activations, never to weights, so rows and tokens of one batch may
differ. The order is always the same: state ops (add, then scale) on the block's input; on a linear the low-rank
deltas, summed on the same input, then output scale, then output bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

STATE = "state"  # the key of ops on the block's input; every other key names a tap


@dataclass(frozen=True)
class Add:
    """x -> x + value, on the state or on a linear's output. value: (D), (B, 1, D) or (B, T, D)."""

    value: Tensor


@dataclass(frozen=True)
class Scale:
    """x -> x * value, on the state or on a linear's output. value: as for `Add`."""

    value: Tensor


@dataclass(frozen=True)
class LowRank:
    """y -> y + up (core * (down x)): a change of weight of rank R that may differ for each token."""

    down: Tensor  # (R, in)
    up: Tensor  # (out, R)
    core: Tensor  # (R), (B, 1, R) or (B, T, R)

    def __call__(self, x: Tensor) -> Tensor:  # (B, T, in) -> (B, T, out)
        inner = nn.functional.linear(x, self.down.to(x.dtype)) * self.core.to(x.dtype)
        return nn.functional.linear(inner, self.up.to(x.dtype))


Op = Add | Scale | LowRank
Ops = Mapping[str, Sequence[Op]]


def merge(several: Iterable[Ops]) -> Ops:
    """The ops of chained modulators, together: deltas and additions sum, scales multiply."""
    merged: dict[str, list[Op]] = {}
    for ops in several:
        for key, these in ops.items():
            merged.setdefault(key, []).extend(these)
    return merged


def shifted(x: Tensor, ops: Sequence[Op]) -> Tensor:
    """The additions, then the scales, in x's own dtype. x: (B, T, D) -> (B, T, D)."""
    for op in ops:
        if isinstance(op, Add):
            x = x + op.value.to(x.dtype)
    for op in ops:
        if isinstance(op, Scale):
            x = x * op.value.to(x.dtype)
    return x


class Tap:
    """A forward hook on one linear of the block; idle until ops are applied to it."""

    def __init__(self, linear: nn.Module) -> None:
        self.ops: Sequence[Op] = ()
        linear.register_forward_hook(self)

    def __call__(self, linear: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        if not self.ops:
            return y
        for op in self.ops:
            if isinstance(op, LowRank):
                y = y + op(args[0])
        for op in self.ops:
            if isinstance(op, Scale):
                y = y * op.value.to(y.dtype)
        for op in self.ops:
            if isinstance(op, Add):
                y = y + op.value.to(y.dtype)
        return y


class StateTap:
    """A forward pre-hook on the first layer of the block: ops on the block's input."""

    def __init__(self, layer: nn.Module) -> None:
        self.ops: Sequence[Op] = ()
        layer.register_forward_pre_hook(self)

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (shifted(args[0], self.ops), *args[1:]) if self.ops else args


Taps = Mapping[str, Tap | StateTap]


@contextmanager
def applied(taps: Taps, ops: Ops) -> Iterator[None]:
    """Within this scope the block's weights differ by `ops`; outside they are as they were.

    Raises:
        KeyError: an op names a linear that the block does not have.
        TypeError: a low-rank op on the state, which is no linear.
    """
    if unknown := ops.keys() - taps.keys():
        raise KeyError(f"the modulator names {sorted(unknown)}; the block has {sorted(taps)}")
    if any(isinstance(op, LowRank) for op in ops.get(STATE, ())):
        raise TypeError("the modulator puts a low-rank op on the state: it takes Add and Scale; LowRank is for linears")
    for name, these in ops.items():
        taps[name].ops = these
    try:
        yield
    finally:
        for name in ops:
            taps[name].ops = ()

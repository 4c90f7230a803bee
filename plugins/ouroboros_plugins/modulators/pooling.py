"""Pooling: what a controller sees of the sequence when it decides about one token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from torch import Tensor

from ouroboros_core.contracts import Turn

PoolName = Literal["prefix-mean", "token", "prompt", "sequence-mean"]
Pool = Callable[[Tensor, Turn], Tensor]  # (B, T, D) -> (B, T, D)


def prefix_mean(state: Tensor, turn: Turn) -> Tensor:
    """Row t is the mean of the real tokens up to t: causal. Summed in float32."""
    total = turn.memory.summed("pool", state)
    return (total / (turn.positions + 1)[..., None]).to(state.dtype)


def token(state: Tensor, turn: Turn) -> Tensor:
    """Row t is token t alone: causal."""
    return state


def prompt_mean(state: Tensor, turn: Turn, length: int) -> Tensor:
    """Row t is the mean of the first `length` real tokens, or of those up to t while there are fewer: causal."""
    total = turn.memory.summed("pool", state * (turn.positions < length)[..., None])
    return (total / (turn.positions + 1).clamp(max=length)[..., None]).to(state.dtype)


def sequence_mean(state: Tensor, turn: Turn) -> Tensor:
    """Every row is the mean of all real tokens, later ones included: the paper's, and not causal."""
    real = turn.mask[..., None]
    mean = (state.float() * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return mean.to(state.dtype).expand_as(state)


POOLS: Mapping[str, Pool] = {"prefix-mean": prefix_mean, "token": token, "sequence-mean": sequence_mean}


def pooling(name: PoolName, prompt: int | None) -> Pool:
    """The pool of this name; with a length, the mean of a fixed prefix."""
    return POOLS[name] if prompt is None else partial(prompt_mean, length=prompt)

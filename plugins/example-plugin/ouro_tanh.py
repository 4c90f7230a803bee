"""The gate `tanh`, a learned opening for each dimension of the state, and a preset that uses it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from ouroboros_core import Options, hookimpl
from ouroboros_core.contracts import LoopFacts, Part, Slot, Turn
from ouroboros_core.presets import Preset


class TanhGateOptions(Options):
    """How far the gate is open before training."""

    openness: float = Field(0.12, gt=0, lt=1, description="share of the new state that is let in at the start")


class TanhGate(nn.Module):
    """h = h_old + tanh(a) * (h_new - h_old), with a learned vector a (D). It starts at tanh(a) = openness.

    Args:
        width: D, the width of the state.
        openness: share of the new state that is let in at the start.
    """

    def __init__(self, width: int, openness: float = 0.12) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((width,), math.atanh(openness)))

    def forward(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor:
        """2 x (B, T, D) -> (B, T, D)."""
        return old + torch.tanh(self.a) * (new - old)


def build(options: TanhGateOptions, facts: LoopFacts) -> TanhGate:
    """The gate from what the user chose and what the model fixes."""
    return TanhGate(facts.width, options.openness)


@hookimpl
def ouroboros_parts() -> Iterable[Part]:
    """Offer the gate."""
    yield Part(Slot.GATE, "tanh", TanhGateOptions, build, "A learned opening for each dimension of the state.")


@hookimpl
def ouroboros_presets() -> Iterable[Preset]:
    """Offer settings under a name."""
    yield Preset(
        "gentle",
        {"modulator": {"use": "static", "rank": 8}, "gate": {"use": "tanh", "openness": 0.05}},
        summary="A static modulator of low rank behind a gate that starts nearly closed.",
        source="this package",
        faithful="It is its own original.",
    )

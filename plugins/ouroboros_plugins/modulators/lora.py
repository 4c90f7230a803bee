"""A LoRA of its own for every turn and linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field

from ouroboros_core.contracts import LoopFacts
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_plugins.modulators.turn_low_rank import Starts, TurnLowRank

REMEDY = "train no more turns than the splitter has layers for, or let it start from zero (start = zero)"


class LoraOptions(Options):
    """One trained LoRA for every turn and linear of the block (Bae 2024, section 2.3)."""

    rank: int = Field(16, ge=1, description="of each change of a weight")
    start: Literal["svd", "zero"] = Field(
        "svd", description="svd: the best change of this rank towards the layer that the turn stands for; zero: none"
    )
    linears: list[str] | None = Field(
        None, min_length=1, description="short names of the linears that change, such as q and v; None: all"
    )


def lora(facts: LoopFacts, rank: int, start: str, linears: Sequence[str] | None) -> TurnLowRank:
    """W_t = W + B_t A_t on linears of the block, with no alpha: the start is to be the best approximation itself.

    Raises:
        UserError: a linear that the block does not have; a start from residuals where the splitter tells of none, or
            of fewer turns than are trained.
    """
    return TurnLowRank(STARTS[start](facts, rank, named(facts, linears)), facts.trained_turns, REMEDY)


def named(facts: LoopFacts, linears: Sequence[str] | None) -> list[str]:
    """The taps whose linears have these short names; None: all.

    Raises:
        UserError: the block has no such linear.
    """
    short = {tap: tap.partition(".")[2] for tap in facts.taps}
    known = list(dict.fromkeys(short.values()))
    if unknown := [name for name in linears or () if name not in known]:
        raise UserError(f"modulator 'lora': no linear '{unknown[0]}' in the block; it has {', '.join(known)}")
    return [tap for tap, name in short.items() if linears is None or name in linears]


def from_residuals(facts: LoopFacts, rank: int, taps: Sequence[str]) -> Starts:
    """A_t = V_r^T and B_t = U_r S_r of the truncated SVD of W_layer - W, the layer being the one a turn stands for."""
    residuals = facts.residuals(rank)
    stacked = {tap: zip(*residuals[tap], strict=True) for tap in taps}
    return {tap: (torch.stack(down), torch.stack(up)) for tap, (down, up) in stacked.items()}


def from_zero(facts: LoopFacts, rank: int, taps: Sequence[str]) -> Starts:
    """A_t as torch starts a linear, uniform within in^-1/2, and B_t zero (Hu 2022): a row for each trained turn."""
    turns, chosen = facts.trained_turns, {tap: facts.taps[tap] for tap in taps}
    return {
        tap: (
            torch.empty(turns, rank, linear.inputs).uniform_(-(linear.inputs**-0.5), linear.inputs**-0.5),
            torch.zeros(turns, linear.outputs, rank),
        )
        for tap, linear in chosen.items()
    }


STARTS: Mapping[str, Callable[[LoopFacts, int, Sequence[str]], Starts]] = {"svd": from_residuals, "zero": from_zero}

"""Level signals: low-rank functions of what a turn sees, added where it looks and thinks."""

from __future__ import annotations

import torch
from pydantic import Field

from ouroboros_core.contracts import LoopFacts, TapFacts
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options
from ouroboros_plugins.modulators.turn_low_rank import TurnLowRank

LINEARS = ("q", "k", "v")
SHARE = 16  # of the width: the rank of RingFormer's signals is D / 16


class LevelSignalOptions(Options):
    """A signal for every turn that depends on the input (RingFormer, Heo 2025)."""

    rank: int | None = Field(None, ge=1, description="of each signal; None: a sixteenth of the width")
    spread: float = Field(1e-6, gt=0, description="standard deviation that the second factors start with")
    rows: int | None = Field(None, ge=1, description="turns there is room for; None: the turns that are trained")


def level_signal(facts: LoopFacts, rank: int | None, spread: float, rows: int | None = None) -> TurnLowRank:
    """q, k, v: y + B_t A_t x; feed-forward branch: FFN(x + B_t A_t x). The residual stream keeps its x.

    A starts at zero and B is drawn from N(0, spread^2), so that the signals start as nothing and still have a
    gradient. RingFormer starts "the first factor" at 0 and the second from "N(0, 1e-6)"; that A is the first one, and
    that 1e-6 is the standard deviation and not the variance, is our reading.

    Raises:
        UserError: the block has no linear named q, k or v; or more turns are trained than there are rows.
    """
    places = {tap: linear for tap, linear in facts.taps.items() if tap.partition(".")[2] in LINEARS}
    if not places:
        raise UserError(
            f"modulator 'level-signal' acts on linears named {', '.join(LINEARS)}, and the block has "
            f"{', '.join(facts.taps)}: choose another modulator, such as lora"
        )
    stream = TapFacts(facts.width, facts.width)
    places |= {site: stream for site in facts.sites("in") if site.endswith(".ffn-in")}
    rank, rows = rank or max(1, facts.width // SHARE), rows or facts.trained_turns
    starts = {
        name: (torch.zeros(rows, rank, place.inputs), torch.randn(rows, place.outputs, rank) * spread)
        for name, place in places.items()
    }
    return TurnLowRank(starts, facts.trained_turns)

"""Norms: how each turn is normalised."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.norms.none import NoNorm
from ouroboros_plugins.norms.per_step_rms import PerStepRMS, PerStepRMSOptions

PARTS = (
    Part(
        Slot.NORM,
        "per-step-rms",
        PerStepRMSOptions,
        lambda options, facts: PerStepRMS(facts.width, options.rows, facts.trained_turns, options.eps),
        "RMSNorm after the block, with a scale of its own for each turn.",
        "Ouroboros, section 3.5, eq. 5; Heo 2025",
        default=True,
    ),
    Part(Slot.NORM, "none", NoOptions, lambda options, facts: NoNorm(), "Leave the state as it is.", null=True),
)

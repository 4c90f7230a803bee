"""Norms: how each turn is normalised."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.norms.none import NoNorm
from ouroboros_plugins.norms.per_level import PerLevel, PerLevelOptions
from ouroboros_plugins.norms.per_step_rms import PerStepRMS, PerStepRMSOptions
from ouroboros_plugins.norms.sandwich import Sandwich, SandwichOptions
from ouroboros_plugins.norms.step_final import StepFinal

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
    Part(
        Slot.NORM,
        "per-level",
        PerLevelOptions,
        lambda options, facts: PerLevel(facts.sites("in"), facts.width, options.rows, facts.trained_turns),
        "Scales of the norms inside the block, of their own for each turn.",
        "RingFormer, Heo 2025",
        starts_null=True,
    ),
    Part(
        Slot.NORM,
        "sandwich",
        SandwichOptions,
        lambda options, facts: Sandwich(facts.sites("sum"), facts.width, options.eps, options.after_loop),
        "RMSNorm behind every residual branch of the block, and behind the loop.",
        "Huginn, Geiping 2025",
    ),
    Part(
        Slot.NORM,
        "step-final",
        NoOptions,
        lambda options, facts: StepFinal(),
        "The base's own final norm between turns.",
        "Ouro (LoopLM), ByteDance 2025",
    ),
    Part(Slot.NORM, "none", NoOptions, lambda options, facts: NoNorm(), "Leave the state as it is.", null=True),
)

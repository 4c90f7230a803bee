"""Gates: how old and new state mix."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.gates.none import NoGate
from ouroboros_plugins.gates.sigmoid import SigmoidGate, SigmoidGateOptions

PARTS = (
    Part(
        Slot.GATE,
        "sigmoid",
        SigmoidGateOptions,
        lambda options, facts: SigmoidGate(facts.width, options.bias),
        "Blend old and new state through a learned sigmoid that starts by keeping 88 % of the old.",
        "Ouroboros, section 3.4, eq. 4; Chen 2026",
        default=True,
    ),
    Part(
        Slot.GATE,
        "none",
        NoOptions,
        lambda options, facts: NoGate(),
        "The new state replaces the old.",
        null=True,
    ),
)

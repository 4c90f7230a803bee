"""Gates: how old and new state mix."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.gates.highway import HighwayGate, HighwayGateOptions
from ouroboros_plugins.gates.layer_scale import scaled
from ouroboros_plugins.gates.none import NoGate
from ouroboros_plugins.gates.residual import Residual, ResidualOptions
from ouroboros_plugins.gates.sigmoid import SigmoidGate, SigmoidGateOptions

PARTS = (
    Part(
        Slot.GATE,
        "sigmoid",
        SigmoidGateOptions,
        lambda options, facts: scaled(SigmoidGate(facts.width, options.bias), options.layer_scale, facts),
        "Blend old and new state through a learned sigmoid that starts by keeping 88 % of the old.",
        "Ouroboros, section 3.4, eq. 4; Chen 2026",
        default=True,
    ),
    Part(
        Slot.GATE,
        "highway",
        HighwayGateOptions,
        lambda options, facts: scaled(
            HighwayGate(facts.width, options.reads, options.bias), options.layer_scale, facts
        ),
        "Blend old and new state through a sigmoid that may read the prelude's output too.",
        "Universal Transformer, Dehghani 2018, in tensor2tensor",
    ),
    Part(
        Slot.GATE,
        "residual",
        ResidualOptions,
        lambda options, facts: scaled(Residual(), options.layer_scale, facts),
        "Add the new state to the old.",
        "Inner Thinking Transformer, Chen 2025",
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

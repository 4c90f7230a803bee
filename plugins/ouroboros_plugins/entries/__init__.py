"""Entries: what the loop starts from, and what of the prelude each turn sees again."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.entries.add import AddPrelude
from ouroboros_plugins.entries.carry import Carry
from ouroboros_plugins.entries.noise_concat import NoiseConcat, NoiseConcatOptions
from ouroboros_plugins.entries.zeros import FromZeros

PARTS = (
    Part(
        Slot.ENTRY,
        "carry",
        NoOptions,
        lambda options, facts: Carry(),
        "Start from the prelude's output; each turn sees only the state.",
        "Ouroboros, section 3.1",
        null=True,
        default=True,
    ),
    Part(
        Slot.ENTRY,
        "noise-concat",
        NoiseConcatOptions,
        lambda options, facts: NoiseConcat(facts.width, options.std, options.adapter),
        "Start from noise; each turn sees a learned mix of the state and the prelude's output.",
        "Huginn, Geiping 2025; McLeish 2025",
    ),
    Part(
        Slot.ENTRY,
        "add",
        NoOptions,
        lambda options, facts: AddPrelude(),
        "Start from the prelude's output, and add it to the state before each turn.",
    ),
    Part(
        Slot.ENTRY,
        "zeros",
        NoOptions,
        lambda options, facts: FromZeros(),
        "Start from zeros, and add the prelude's output to the state before each turn.",
        "Yang 2023",
    ),
)

"""Splitters: which layers are kept, and which of them are looped."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_plugins.splitters.prelude_recurrent_coda import (
    PreludeRecurrentCoda,
    PreludeRecurrentCodaOptions,
)
from ouroboros_plugins.splitters.refine_last import RefineLast, RefineLastOptions

PARTS = (
    Part(
        Slot.SPLITTER,
        "prelude-recurrent-coda",
        PreludeRecurrentCodaOptions,
        lambda options, facts: PreludeRecurrentCoda(options.prelude, options.block, options.coda, options.size),
        "Keep the first and last layers, loop a few in the middle, remove the rest.",
        "Ouroboros, section 3.1",
        default=True,
    ),
    Part(
        Slot.SPLITTER,
        "refine-last",
        RefineLastOptions,
        lambda options, facts: RefineLast(options.size),
        "Keep every layer and loop the last ones.",
        "Ouroboros, section 5.3",
    ),
)

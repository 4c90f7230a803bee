"""Entries: what the loop starts from, and what of the prelude each turn sees again."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.entries.carry import Carry

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
)

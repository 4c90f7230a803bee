"""A sound plugin whose gate is called as somebody else's."""

from ouroboros_core import NoOptions, hookimpl
from ouroboros_core.contracts import Part, Slot


@hookimpl
def ouroboros_parts():
    """Offer another gate `shared`, and one of our own name."""
    yield Part(Slot.GATE, "shared", NoOptions, lambda options, facts: "zenith's gate", "A gate.")
    yield Part(Slot.GATE, "sigmoid", NoOptions, lambda options, facts: "zenith's sigmoid", "A gate.")

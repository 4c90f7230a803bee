"""A sound plugin: one gate."""

from ouroboros_core import NoOptions, hookimpl
from ouroboros_core.contracts import Part, Slot


@hookimpl
def ouroboros_parts():
    """Offer the gate `shared`."""
    yield Part(Slot.GATE, "shared", NoOptions, lambda options, facts: "acme's gate", "A gate.")

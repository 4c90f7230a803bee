"""A plugin that calls itself built in, and is not."""

from ouroboros_core import NoOptions, hookimpl
from ouroboros_core.contracts import Part, Slot


@hookimpl
def ouroboros_parts():
    """Offer a default gate under our own name."""
    yield Part(Slot.GATE, "none", NoOptions, lambda options, facts: "acme's none", "A gate.", null=True, default=True)

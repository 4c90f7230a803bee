"""A sound plugin: one gate, one preset."""

from ouroboros_core import NoOptions, hookimpl
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.presets import Preset


@hookimpl
def ouroboros_parts():
    """Offer the gate `shared`."""
    yield Part(Slot.GATE, "shared", NoOptions, lambda options, facts: "acme's gate", "A gate.")


@hookimpl
def ouroboros_presets():
    """Offer the preset `shared-system`."""
    yield Preset("shared-system", {"loop": {"turns": 2}}, "Acme's system.")

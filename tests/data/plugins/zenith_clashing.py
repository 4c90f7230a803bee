"""A sound plugin whose gate and preset are called as somebody else's."""

from ouroboros_core import NoOptions, hookimpl
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.presets import Preset


@hookimpl
def ouroboros_parts():
    """Offer another gate `shared`, and one of our own name."""
    yield Part(Slot.GATE, "shared", NoOptions, lambda options, facts: "zenith's gate", "A gate.")
    yield Part(Slot.GATE, "sigmoid", NoOptions, lambda options, facts: "zenith's sigmoid", "A gate.")


@hookimpl
def ouroboros_presets():
    """Offer another preset `shared-system`."""
    return [Preset("shared-system", {"loop": {"turns": 3}}, "Zenith's system.")]

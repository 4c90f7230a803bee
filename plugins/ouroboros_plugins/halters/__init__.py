"""Halters: when a token stops, and which of its states is read."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.halters.act import ACTHalter, ACTOptions
from ouroboros_plugins.halters.fixed import FixedHalter

PARTS = (
    Part(
        Slot.HALTER,
        "fixed",
        NoOptions,
        lambda options, facts: FixedHalter(),
        "Every token takes every turn; the last state is read.",
        null=True,
        default=True,
    ),
    Part(
        Slot.HALTER,
        "act",
        ACTOptions,
        lambda options, facts: ACTHalter(facts.width, options.bias, options.epsilon),
        "Adaptive computation time: each token stops by itself, and the weighted sum of its states is read.",
        "Graves 2016",
    ),
)

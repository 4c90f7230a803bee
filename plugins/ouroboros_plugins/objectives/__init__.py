"""Objectives: terms of the loss, token by token."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_plugins.objectives.distill import Distill, DistillOptions
from ouroboros_plugins.objectives.next_token import NextToken, NextTokenOptions
from ouroboros_plugins.objectives.ponder import Ponder, PonderOptions

PARTS = (
    Part(
        Slot.OBJECTIVE,
        "next-token",
        NextTokenOptions,
        lambda options, facts: NextToken(options.weight),
        "Negative log-likelihood of the next token.",
        default=True,
    ),
    Part(
        Slot.OBJECTIVE,
        "ponder",
        PonderOptions,
        lambda options, facts: Ponder(options.weight),
        "Ponder cost: turns taken plus remainder.",
        "Graves 2016",
    ),
    Part(
        Slot.OBJECTIVE,
        "distill",
        DistillOptions,
        lambda options, facts: Distill(options.weight, options.temperature),
        "KL divergence to the intact base model.",
        "Hinton 2015; Bae 2024",
    ),
)

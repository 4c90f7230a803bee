"""Schedules: how many turns a training step takes."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_plugins.schedules.choice import Choice, ChoiceOptions
from ouroboros_plugins.schedules.fixed import Fixed, FixedOptions

PARTS = (
    Part(
        Slot.SCHEDULE,
        "fixed",
        FixedOptions,
        lambda options, facts: Fixed(facts.turns if options.turns is None else options.turns, options.with_gradient),
        "The same number of turns at every step.",
        null=True,
        default=True,
    ),
    Part(
        Slot.SCHEDULE,
        "choice",
        ChoiceOptions,
        lambda options, facts: Choice(tuple(options.turns), options.with_gradient),
        "One of a few numbers of turns, drawn anew for each step.",
        "Ouroboros, public code",
    ),
)

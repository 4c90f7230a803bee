"""Schedules: how many turns a training step takes."""

from ouroboros_core.contracts import ModelFacts, Part, Slot
from ouroboros_plugins.schedules.choice import Choice, ChoiceOptions
from ouroboros_plugins.schedules.fixed import Fixed, FixedOptions
from ouroboros_plugins.schedules.log_normal_poisson import LogNormalPoisson, LogNormalPoissonOptions
from ouroboros_plugins.schedules.ramp import Ramp, RampOptions

DRAWN = 4  # times the mean: with sigma 0.5 and a mean of four or more, fewer than one draw in 200 is deeper


def _log_normal_poisson(options: LogNormalPoissonOptions, facts: ModelFacts) -> LogNormalPoisson:
    mean = facts.turns if options.mean is None else options.mean
    most = DRAWN * mean if options.most is None else options.most
    return LogNormalPoisson(mean, options.sigma, most, options.with_gradient)


def _ramp(options: RampOptions, facts: ModelFacts) -> Ramp:
    turns = facts.turns if options.turns is None else options.turns
    deepest = turns if options.sigma is None else DRAWN * turns
    most = deepest if options.most is None else options.most
    return Ramp(turns, options.over, options.shape, options.sigma, most, options.with_gradient)


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
    Part(
        Slot.SCHEDULE,
        "log-normal-poisson",
        LogNormalPoissonOptions,
        _log_normal_poisson,
        "A number of turns drawn anew for each step, mostly near a mean, now and then many more.",
        "Geiping 2025",
    ),
    Part(
        Slot.SCHEDULE,
        "ramp",
        RampOptions,
        _ramp,
        "Depth grows from one turn to its full number, exactly or as the mean of a draw.",
        "McLeish 2025",
    ),
)

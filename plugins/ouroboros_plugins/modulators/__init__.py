"""Modulators: how each turn's weights differ."""

from ouroboros_core.contracts import LoopFacts, Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.modulators.bases import FrozenBases
from ouroboros_plugins.modulators.controller import Controller, ControllerOptions
from ouroboros_plugins.modulators.none import NoModulation
from ouroboros_plugins.modulators.pooling import pooling
from ouroboros_plugins.modulators.static import StaticDiagonal, StaticOptions


def _controller(options: ControllerOptions, facts: LoopFacts) -> Controller:
    return Controller(
        bases=FrozenBases(facts.bases(options.rank), options.alpha / options.rank),
        width=facts.width,
        rank=options.rank,
        pool=pooling(options.pool, options.prompt),
        rows=options.rows,
        trained=facts.trained_turns,
    )


def _static(options: StaticOptions, facts: LoopFacts) -> StaticDiagonal:
    bases = FrozenBases(facts.bases(options.rank), options.alpha / options.rank)
    return StaticDiagonal(bases, options.rank, options.rows, facts.trained_turns)


PARTS = (
    Part(
        Slot.MODULATOR,
        "controller",
        ControllerOptions,
        _controller,
        "A small network reads the state and scales frozen SVD directions, anew at every turn.",
        "Ouroboros, section 3.3, eq. 2 and 3",
        default=True,
    ),
    Part(
        Slot.MODULATOR,
        "static",
        StaticOptions,
        _static,
        "One learned diagonal a turn on the same frozen directions, whatever the input.",
        "Ouroboros, section 5.1",
    ),
    Part(
        Slot.MODULATOR,
        "none",
        NoOptions,
        lambda options, facts: NoModulation(),
        "Every turn has the same weights.",
        null=True,
    ),
)

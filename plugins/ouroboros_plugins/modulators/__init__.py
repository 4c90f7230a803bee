"""Modulators: how each turn's weights differ."""

from ouroboros_core.contracts import LoopFacts, Part, Slot
from ouroboros_core.ops import STATE
from ouroboros_core.options import NoOptions
from ouroboros_core.tables import TurnTable
from ouroboros_plugins.modulators.bases import FrozenBases
from ouroboros_plugins.modulators.controller import Controller, ControllerOptions
from ouroboros_plugins.modulators.level_signal import LevelSignalOptions, level_signal
from ouroboros_plugins.modulators.lora import LoraOptions, lora
from ouroboros_plugins.modulators.none import NoModulation
from ouroboros_plugins.modulators.pooling import pooling
from ouroboros_plugins.modulators.static import StaticDiagonal, StaticOptions
from ouroboros_plugins.modulators.step_embedding import ROWS, StepEmbedding, StepEmbeddingOptions
from ouroboros_plugins.modulators.step_scale import StepScale, StepScaleOptions


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


def _step_embedding(options: StepEmbeddingOptions, facts: LoopFacts) -> StepEmbedding:
    learned = options.kind == "learned"  # only then are `rows` read
    steps = TurnTable(options.rows or ROWS, facts.trained_turns, facts.width) if learned else None
    return StepEmbedding(steps, options.positions)


def _step_scale(options: StepScaleOptions, facts: LoopFacts) -> StepScale:
    place = STATE if options.on == "input" else facts.sites("sum")[-1]
    return StepScale(place, facts.width, options.rows, facts.trained_turns)


PARTS = (
    Part(
        Slot.MODULATOR,
        "controller",
        ControllerOptions,
        _controller,
        "A small network reads the state and scales frozen SVD directions, anew at every turn.",
        "Ouroboros, section 3.3, eq. 2 and 3",
        starts_null=True,
        default=True,
    ),
    Part(
        Slot.MODULATOR,
        "static",
        StaticOptions,
        _static,
        "One learned diagonal a turn on the same frozen directions, whatever the input.",
        "Ouroboros, section 5.1",
        starts_null=True,
    ),
    Part(
        Slot.MODULATOR,
        "lora",
        LoraOptions,
        lambda options, facts: lora(facts, options.rank, options.start, options.linears),
        "A trained LoRA of its own for every turn and linear, from the layers that the turns stand for.",
        "Relaxed Recursive Transformers, Bae 2024, section 2.3",
        starts_null=lambda options: options.start == "zero",
    ),
    Part(
        Slot.MODULATOR,
        "level-signal",
        LevelSignalOptions,
        lambda options, facts: level_signal(facts, options.rank, options.spread, options.rows),
        "Low-rank signals of every turn, from its input, in queries, keys, values and the feed-forward's input.",
        "RingFormer, Heo 2025",
        starts_null=True,
    ),
    Part(
        Slot.MODULATOR,
        "step-embedding",
        StepEmbeddingOptions,
        _step_embedding,
        "A signal of the turn, and perhaps of each token's position, added to the block's input.",
        "Universal Transformer, Dehghani 2018; learned: Chen 2026 (second-hand)",
        starts_null=lambda options: options.kind == "learned" and not options.positions,
    ),
    Part(
        Slot.MODULATOR,
        "step-scale",
        StepScaleOptions,
        _step_scale,
        "A learned vector for every turn multiplies the block's input or output.",
        "Bae 2024 (input); Inner Thinking Transformer, Chen 2025 (output)",
        starts_null=True,
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

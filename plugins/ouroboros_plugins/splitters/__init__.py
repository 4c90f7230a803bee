"""Splitters: which layers are kept, and which of them are looped."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.splitters.angular_distance import AngularDistance
from ouroboros_plugins.splitters.block_influence import BlockInfluence
from ouroboros_plugins.splitters.cycle import Cycle
from ouroboros_plugins.splitters.from_config import FromConfig, FromConfigOptions
from ouroboros_plugins.splitters.measuring import MeasuringOptions
from ouroboros_plugins.splitters.middle_cycle import MiddleCycle
from ouroboros_plugins.splitters.prelude_recurrent_coda import (
    PreludeRecurrentCoda,
    PreludeRecurrentCodaOptions,
)
from ouroboros_plugins.splitters.refine_last import RefineLast, RefineLastOptions
from ouroboros_plugins.splitters.sequence import InSequence
from ouroboros_plugins.splitters.sharing import SharingOptions
from ouroboros_plugins.splitters.whole import Whole

PARTS = (
    Part(
        Slot.SPLITTER,
        "prelude-recurrent-coda",
        PreludeRecurrentCodaOptions,
        lambda options, facts: PreludeRecurrentCoda(options.prelude, options.block, options.coda, options.size),
        "Keep the first and last layers, loop a few in the middle, remove the rest.",
        "Ouroboros, section 3.1",
        default=True,
    ),
    Part(
        Slot.SPLITTER,
        "refine-last",
        RefineLastOptions,
        lambda options, facts: RefineLast(options.size),
        "Keep every layer and loop the last ones.",
        "Ouroboros, section 5.3",
    ),
    Part(
        Slot.SPLITTER,
        "whole",
        NoOptions,
        lambda options, facts: Whole(),
        "Loop every layer as one block.",
        "Universal Transformer, Dehghani 2018; Ouro (LoopLM), ByteDance 2025",
    ),
    Part(
        Slot.SPLITTER,
        "from-config",
        FromConfigOptions,
        lambda options, facts: FromConfig(options.prelude, options.size, options.coda),
        "Share out a base that was made with just these layers.",
        "Huginn, Geiping 2025",
    ),
    Part(
        Slot.SPLITTER,
        "cycle",
        SharingOptions,
        lambda options, facts: Cycle(options.layers, options.start),
        "Share layers in a cycle, ABCABC, as one block.",
        "Relaxed Recursive Transformers, Bae 2024",
    ),
    Part(
        Slot.SPLITTER,
        "sequence",
        SharingOptions,
        lambda options, facts: InSequence(options.layers, options.start),
        "Share layers in sequence, AABBCC, each a loop of its own.",
        "Relaxed Recursive Transformers, Bae 2024",
    ),
    Part(
        Slot.SPLITTER,
        "middle-cycle",
        SharingOptions,
        lambda options, facts: MiddleCycle(options.layers, options.start),
        "Share the layers between the first and the last in a cycle.",
        "Relaxed Recursive Transformers, Bae 2024",
    ),
    Part(
        Slot.SPLITTER,
        "angular-distance",
        MeasuringOptions,
        lambda options, facts: AngularDistance(options.keep, options.size),
        "Loop the middle of the layers over which the state turns least; remove the rest of them.",
        "the distance of Gromov 2024",
        measures=True,
    ),
    Part(
        Slot.SPLITTER,
        "block-influence",
        MeasuringOptions,
        lambda options, facts: BlockInfluence(options.keep, options.size),
        "Loop the most influential of the least influential run of layers; remove the rest of them.",
        "the influence of ShortGPT, Men 2024",
        measures=True,
    ),
)
